"""The units of a stage, planned once, and the work on those that are unfinished."""

import time
from collections.abc import Mapping
from typing import Protocol

from jobs.runs import events
from jobs.runs.marks import STAGES, Unit
from jobs.runs.run import Run
from store.errors import UserError

IN_DRIVER = ("rank", "evaluate", "report")  # stages that this process does itself; the others log their own end


class Stage(Protocol):
    """A file of `jobs.stages`."""

    def units(self, run: Run) -> list[Unit]:
        """All units of the stage, by the run's units of earlier stages."""

    def run_unfinished(self, run: Run) -> None:
        """Do the units that are unfinished, and mark them."""


def plan(run: Run, stages: Mapping[str, Stage], stage: str) -> list[Unit]:
    """The units of a stage. They and those of earlier stages are made once, and again after earlier work."""
    for name in STAGES[: STAGES.index(stage) + 1]:
        if name not in run.units:
            run.units[name] = {unit.path: unit for unit in stages[name].units(run)}
    return list(run.units[stage].values())


def run_stage(run: Run, stages: Mapping[str, Stage], stage: str) -> None:
    """Do what is unfinished of a stage.

    Raises:
        UserError: a stage before it is not finished.
    """
    units, start = plan(run, stages, stage), time.monotonic()
    if any(unit.basis is None for unit in units):
        earlier = next(name for name in STAGES if any(run.reason(unit) for unit in run.units[name].values()))
        raise UserError(
            f"{stage}: {earlier} is not finished with these settings; run jobs/{earlier}.py or jobs/full_eval.py first"
        )
    if any(run.reason(unit) for unit in units):
        stages[stage].run_unfinished(run)
        if stage in IN_DRIVER:
            run.log.add("stage", stage, seconds=round(time.monotonic() - start, 3), **events.memory())

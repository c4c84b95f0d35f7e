"""Report: the run as a page to look at: figures, tables, queries with their results.

In: OUTPUT/metrics.json, rankings/ and the rest of the run, the image set; OUTPUT/ablation.parquet where there is one.
Out: OUTPUT/report/index.html with pages, data and pictures beside it, made by `jobs.reports.site`.
"""

import time

from jobs.reports import site
from jobs.runs.marks import CODES, WHOLE, Outcome, Unit, as_json, fingerprint, read_json
from jobs.runs.progress import say
from jobs.runs.run import Run
from jobs.runs.settings import record
from store.files import digest
from store.objects import ObjectStore, open_store

PAGE = "report/index.html"
ABLATION = "ablation.parquet"


def units(run: Run) -> list[Unit]:
    """One, over the whole run."""
    outputs, basis = run.digests([*run.units["rank"].values(), *run.units["evaluate"].values()]), None
    if outputs is not None:
        inputs = {"outputs": fingerprint(outputs)} | _other_inputs(run)
        basis = {"code": CODES["report"], "settings": {"report": record(run.settings.report)}, "inputs": inputs}
    return [Unit(f"report/{WHOLE}", (PAGE,), basis, run.selected.images)]


def _other_inputs(run: Run) -> dict[str, str]:
    """Digests of what the report shows and no stage has written: an ablation, and an earlier run's figures."""
    digests = {}
    if run.store.exists(ABLATION):
        digests["ablation"] = digest(run.store.read(ABLATION))
    if run.settings.report.compare:
        earlier = open_store(run.settings.report.compare, endpoint_url=run.settings.storage.endpoint_url)
        digests["compare"] = digest(earlier.read("metrics.json")) if earlier.exists("metrics.json") else ""
    return digests


def run_unfinished(run: Run) -> None:
    (unit,) = run.units["report"].values()
    start, wanted = time.perf_counter(), run.settings.report
    site.build(run.store, run.images, queries=wanted.queries, top=wanted.top, compare=wanted.compare)
    seconds = time.perf_counter() - start
    run.finish(unit, Outcome({PAGE: digest(run.store.read(PAGE))}, wanted.queries, {"write": seconds}))
    say(f"report: written in {seconds:.1f} s")


def mark_rewritten(store: ObjectStore) -> None:
    """After another command has written the page: the mark of the run's report names the bytes that are there now."""
    key = f"done/report/{WHOLE}.json"
    if mark := read_json(store, key):
        now = {"outputs": {PAGE: store.digest(PAGE)}, "stamps": {PAGE: store.info(PAGE).stamp}}
        store.write(key, as_json(mark | now))

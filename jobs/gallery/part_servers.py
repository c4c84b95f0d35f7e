"""The parts of a gallery, each opened by a server of its own: in this process, or as actors on Ray.

A server is asked functions of its part, which is a `Gallery`; `jobs.gallery.serving` puts the answers together.
"""

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from jobs.runs.versions import our_code
from retrieval.ann_parts import Answer
from retrieval.gallery import Gallery
from store.objects import ObjectStore

HELD = 2  # versions that a part's server has open: the one that serves, and the one before for questions under way
AT_ONCE = 4  # questions that an actor works on


class PartServer:
    """One part of a gallery; it opens each version that it is asked for, and holds the last ones."""

    def __init__(self, store: ObjectStore, part: int, check: bool, record: dict[str, Any] | None) -> None:
        self._store, self._part, self._check = store, part, check
        self._unwritten = {} if record is None else {record["name"]: record}
        self._galleries: dict[str, Gallery] = {}
        self._opening = threading.Lock()

    def ask(self, version: str, function: Callable[..., Any], *args: Any) -> Any:
        """`function` of the part, opened as a gallery of its own, and the arguments."""
        gallery = self._galleries.get(version)  # questions to an open version do not wait while another one is opened
        if gallery is None:
            with self._opening:
                gallery = self._galleries.get(version)
                if gallery is None:
                    gallery = self._open(version)
        return function(gallery, *args)

    def _open(self, version: str) -> Gallery:
        record = self._unwritten.get(version)
        gallery = Gallery(self._store, version, check=self._check, parts=[self._part], record=record)
        self._galleries[version] = gallery
        for old in list(self._galleries)[:-HELD]:
            del self._galleries[old]
        return gallery


class Servers(Protocol):
    """The servers of parts 0, 1 …, made as they are asked for."""

    def ask(
        self, parts: Collection[int], wait_s: float | None, version: str, function: Callable[..., Any], *args: Any
    ) -> dict[int, Any]:
        """Part -> its answer, as `PartServer.ask`, of those that answer within `wait_s` seconds (None: of all)."""

    def close(self) -> None: ...


@dataclass
class InProcess:
    """The parts in this process, asked one after the other; `record` is the version.json of a version not whole yet."""

    store: ObjectStore
    check: bool = True
    record: dict[str, Any] | None = None
    servers: dict[int, PartServer] = field(default_factory=dict)

    def ask(
        self, parts: Collection[int], wait_s: float | None, version: str, function: Callable[..., Any], *args: Any
    ) -> dict[int, Any]:
        for part in parts:
            if part not in self.servers:
                self.servers[part] = PartServer(self.store, part, self.check, self.record)
        return {part: self.servers[part].ask(version, function, *args) for part in parts}

    def close(self) -> None:
        self.servers.clear()


@dataclass
class OnRay:
    """The parts as actors that Ray spreads over the nodes, and starts again elsewhere when one dies."""

    store: ObjectStore
    check: bool = True
    record: dict[str, Any] | None = None
    num_cpus: float = 0.0
    actors: dict[int, Any] = field(default_factory=dict)

    def ask(
        self, parts: Collection[int], wait_s: float | None, version: str, function: Callable[..., Any], *args: Any
    ) -> dict[int, Any]:
        import ray

        calls = {self._actor(part).ask.remote(version, function, *args): part for part in parts}
        done, late = ray.wait(list(calls), num_returns=len(calls), timeout=wait_s)
        for call in late:  # an actor that comes back need not answer what nobody waits for
            ray.cancel(call)
        answers = {}
        for call in done:
            try:
                answers[calls[call]] = answer_of(call)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:  # its node is gone, and nothing is left to start it again on
                continue
        return answers

    def _actor(self, part: int) -> Any:
        import ray

        if part not in self.actors:
            options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1, "max_concurrency": AT_ONCE}
            remote = ray.remote(num_cpus=self.num_cpus, scheduling_strategy="SPREAD", **options)(PartServer)
            actor: Any = remote.options(runtime_env=our_code())
            self.actors[part] = actor.remote(self.store, part, self.check, self.record)
        return self.actors[part]

    def close(self) -> None:
        import ray

        for actor in self.actors.values():
            ray.kill(actor)
        self.actors.clear()


def answer_of(call: Any) -> Any:
    """What a task or an actor's method answers; an error that is meant for users is raised as itself."""
    import ray

    try:
        return ray.get(call)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if getattr(error.cause, "user_facing", False) else error from None


# --- what a part is asked ---------------------------------------------------------------------------------------------


def nearest_in(part: Gallery, queries: np.ndarray, k: int) -> Answer:
    return part.index.search(queries, k)


def exact_in(part: Gallery, queries: np.ndarray, k: int) -> Answer:
    return part.index.exact(queries, k)


def found_in(part: Gallery, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, pa.Table]:
    """The nearest, and the items of those that were found."""
    similarity, ids = part.index.search(queries, k)
    return similarity, ids, part.table(np.unique(ids[ids >= 0]))


def table_in(part: Gallery, ids: np.ndarray) -> pa.Table:
    return part.table(ids)


def vectors_in(part: Gallery, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those of the ids that the part has, and their stored rows."""
    own = part.table(ids)["id"].to_numpy()
    return own, part.vectors(own)

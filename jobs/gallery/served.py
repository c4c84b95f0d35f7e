"""One version of a gallery whose parts are served apart, asked as one gallery: `ServedGallery`.

Every question goes to all parts at once (`jobs.gallery.part_servers`); what they find is merged as one index over all
rows would give it. `jobs.gallery.serving` opens one on a cluster.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.gallery.part_servers import Servers, exact_in, found_in, nearest_in, table_in, vectors_in
from postproc.places import places
from retrieval import steps
from retrieval.ann_parts import Answer, merged
from retrieval.gallery import Category, dims_of, facts_of, search, steps_of
from retrieval.gallery_files import (
    ITEMS,
    LEARNED,
    VERSIONS,
    GalleryError,
    current,
    part_records,
    read_record,
)
from retrieval.step_kinds import GalleryFacts
from retrieval.steps import FittedSearch
from store.files import digest
from store.objects import ObjectStore

OPEN_S = 600.0  # until every part must be open: a bucket's are fetched first


class PartsMissing(GalleryError):
    """Some parts did not answer in time.

    `missing` are their numbers, `answer` is what the others gave, in the form that the call would have returned.
    """

    def __init__(self, reason: str, missing: tuple[int, ...], answer: Any) -> None:
        super().__init__(reason)
        self.missing, self.answer = missing, answer

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.missing, self.answer)


@dataclass(frozen=True)
class _Version:
    """A version that is served, without its rows."""

    name: str
    record: dict[str, Any]
    fitted: FittedSearch

    @classmethod
    def of(cls, store: ObjectStore, record: dict[str, Any]) -> "_Version":
        search_steps, name = steps_of(record)
        weights, nothing = record["search"]["weights"], {name: np.zeros((0, 0), np.float32)}
        fitted = FittedSearch(search_steps, weights, nothing)
        if published := record["files"].get(LEARNED):
            key = f"{VERSIONS}/{record['name']}/{LEARNED}"
            data = store.read(key)
            if (actual := digest(data)) != published:
                advice = "`--rollback`, then publish anew"
                raise GalleryError(f"{store.uri}/{key}: {actual}, published as {published}; {advice}")
            fitted = steps.load(search_steps, nothing, data, weights)
        return cls(record["name"], record, fitted)


class ServedGallery:
    """One version of a gallery whose parts are served apart. Several threads may search it, as a `Gallery`.

    Attributes:
        version: its name. record: version.json. dims: as of `Gallery`.
    """

    def __init__(
        self,
        store: ObjectStore,
        version: str,
        servers: Servers,
        *,
        deadline_s: float | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        self._store, self._servers, self._deadline_s = store, servers, deadline_s
        try:
            self._version = self._open(read_record(store, version) if record is None else record)
        except BaseException:
            self.close()
            raise

    def _open(self, record: dict[str, Any]) -> _Version:
        version = _Version.of(self._store, record)
        parts = range(len(part_records(record)))
        opened = self._servers.ask(parts, OPEN_S, version.name, len)
        if missing := [part for part in parts if part not in opened]:
            reason = f"parts {missing} of {version.name} are not open after {OPEN_S:g} s"
            raise GalleryError(f"{self._store.uri}: {reason}; has the cluster cores left for them?")
        return version

    def __enter__(self) -> "ServedGallery":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the servers."""
        self._servers.close()

    def __len__(self) -> int:
        """Number of garments that can be found."""
        return int(self.record["rows"])

    @property
    def version(self) -> str:
        return self._version.name

    @property
    def record(self) -> dict[str, Any]:
        return self._version.record

    @property
    def dims(self) -> dict[str, int]:
        return dims_of(self.record)

    @property
    def rows(self) -> int:
        return len(self)

    def search(self, vectors: np.ndarray, k: int, *, category: Category | None = None) -> Answer:
        """As `Gallery.search`; where a step works on lists, equal similarities come by lower id too.

        Raises GalleryError as that does, and PartsMissing.
        """
        question = self._question()
        return question.whole(search(question, vectors, k, category))

    def nearest(self, queries: np.ndarray, k: int) -> Answer:
        """`AnnIndex.search` over all parts: queries (Q, D) float32 are as the steps leave them. Raises PartsMissing."""
        question = self._question()
        return question.whole(question.nearest(queries, k))

    def exact(self, queries: np.ndarray, k: int) -> Answer:
        """As `nearest`, comparing every row."""
        question = self._question()
        return question.whole(merged(question.ask(exact_in, queries, k).values(), len(queries), k))

    def lookup(self, ids: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """As `Gallery.lookup`. Raises PartsMissing."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        question = self._question()
        rows = {row["id"]: row for table in question.ask(table_in, ids).values() for row in table.to_pylist()}
        return question.whole([dict(rows.get(one, {})) for one in ids.tolist()])

    def table(self, ids: Sequence[int] | np.ndarray) -> pa.Table:
        """As `Gallery.table`, without similarities. Raises PartsMissing."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        question = self._question()
        items = together(list(question.ask(table_in, ids).values()))
        place = places(items["id"].to_numpy(), ids)
        return question.whole(items.take(pa.array(place[place >= 0])))

    def vectors(self, ids: np.ndarray) -> np.ndarray:
        """As `Gallery.vectors`; the rows of missing parts are 0 in the answer of PartsMissing."""
        ids = np.asarray(ids, np.int64)
        question = self._question()
        own, rows = question.vectors(ids)
        place = places(own, ids)
        if (place < 0).any() and not question.missing:
            raise GalleryError(f"gallery: no garment {ids[place.argmin()]}; ids are those that `search` returns")
        answer = np.zeros((len(ids), rows.shape[1]), np.float32)
        answer[place >= 0] = rows[place[place >= 0]]
        return question.whole(answer)

    def ask(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function` of every part, opened as a `Gallery` of its own where it is served. Raises PartsMissing."""
        question = self._question()
        answers = question.ask(function, *args)
        return question.whole([answers[part] for part in sorted(answers)])

    def refresh(self) -> bool:
        """Follow to the version that is current now, once every part has it open; True if it is another.

        Raises GalleryError where it cannot be used; the version held goes on answering.
        """
        name = current(self._store)[0]
        if name == self.version:
            return False
        self._version = self._open(read_record(self._store, name))
        return True

    def _question(self) -> "_Question":
        return _Question(self._servers, self._version, self._deadline_s)


class _Rows:
    """The rows that the last round of a question found, by rising id, as the steps of a search look at them.

    Query expansion takes them for the gallery's array; steps on lists read the attributes of `GalleryFacts`.
    """

    def __init__(self, question: "_Question") -> None:
        self._question = question
        self.hold(np.zeros(0, np.int64), ITEMS.empty_table(), 0)

    def hold(self, ids: np.ndarray, items: pa.Table, dim: int) -> None:
        self.ids, self._items, self.shape = ids, items, (len(ids), dim)
        self._stored: np.ndarray | None = None

    def __len__(self) -> int:
        return int(self._question.record["rows"])

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self._stored is None:  # all at once, at the first look
            own, found = self._question.vectors(self.ids)
            self._stored = np.zeros(self.shape, np.float32)
            self._stored[np.searchsorted(self.ids, own)] = found.reshape(len(own), self.shape[1])
        return self._stored[rows]

    @cached_property
    def facts(self) -> GalleryFacts:
        order = pa.array(np.argsort(self._items["id"].to_numpy()))
        return facts_of(self._items.take(order), self.ids)  # of the last round, after which no other one follows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.facts, name)


@dataclass
class _Question:
    """One question to all parts, in as many rounds as its steps take; the `Opened` of a search.

    A part that was late once is not asked again.
    """

    servers: Servers
    version: _Version
    deadline_s: float | None
    missing: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.facts: Any = _Rows(self)
        gallery: Any = dict.fromkeys(self.version.fitted.gallery, self.facts)
        self.fitted = replace(self.version.fitted, gallery=gallery, find=self.find, seconds={})

    @property
    def record(self) -> Mapping[str, Any]:
        return self.version.record

    @property
    def ids(self) -> np.ndarray:
        ids: np.ndarray = self.facts.ids
        return ids

    def ask(self, function: Callable[..., Any], *args: Any) -> dict[int, Any]:
        asked = [part for part in range(len(part_records(self.record))) if part not in self.missing]
        answers = self.servers.ask(asked, self.deadline_s, self.version.name, function, *args)
        self.missing |= set(asked) - set(answers)
        return answers

    def whole(self, answer: Any) -> Any:
        """The answer, if every part has contributed to it; else PartsMissing."""
        if not self.missing:
            return answer
        missing, count = tuple(sorted(self.missing)), len(part_records(self.record))
        names = f"part{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} of {count}"
        reason = f"{names} did not answer" + ("" if self.deadline_s is None else f" within {self.deadline_s} s")
        raise PartsMissing(f"gallery: {reason}; what the others found is this error's `answer`", missing, answer)

    def nearest(self, queries: np.ndarray, k: int) -> Answer:
        return merged(self.ask(nearest_in, queries, k).values(), len(queries), k)

    def find(self, queries: np.ndarray, k: int) -> Answer:
        """Similarity and numbers of `_Rows`, -1 for none, as `FittedSearch.find`."""
        queries = np.ascontiguousarray(queries, np.float32)
        answers = list(self.ask(found_in, queries, k).values())
        similarity, ids = merged(((s, i) for s, i, _ in answers), len(queries), k)
        found = np.unique(ids[ids >= 0])
        self.facts.hold(found, together([items for *_, items in answers]), queries.shape[1])
        return similarity, np.where(ids >= 0, np.searchsorted(found, ids), -1)

    def vectors(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Those of the ids that are in the gallery, (M,), and their rows, (M, D)."""
        owns, rows = zip(*self.ask(vectors_in, ids).values(), (ids[:0], np.zeros((0, 0), np.float32)), strict=True)
        return np.concatenate(owns), np.concatenate([r for r in rows if len(r)] or rows[-1:])


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Items of several parts, perhaps of none."""
    return pa.concat_tables(tables or [ITEMS.empty_table()])

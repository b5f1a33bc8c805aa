"""Vector databases that embed jobs fill and `neox-serve search` asks: Milvus, embedded in a file or a server of it, and LanceDB.

Collections and tables are made where they are not there. Rows replace those of the same id, so that writing again changes nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from deployments.jobs.files.storage import told
from neox_serve.core.jobs.vector_target import VectorTarget

_ROWS_AT_ONCE = 500
_MAX_ID_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class VectorRow:
    """What is kept. text: what was embedded, empty where that was token ids."""

    id: str
    text: str
    vector: Sequence[float]


@dataclass(frozen=True, slots=True)
class Found:
    """A row near a question. similarity: the cosine, 1 for the same direction."""

    id: str
    text: str
    similarity: float


class VectorStore(Protocol):
    """One collection. Both raise OSError with words for people."""

    def write(self, rows: Iterable[VectorRow]) -> int:
        """Puts rows in the place of those of the same id; returns how many."""

    def search(self, vector: Sequence[float], most: int) -> list[Found]:
        """The nearest rows, the nearest first."""


@contextmanager
def opened(target: VectorTarget) -> Iterator[VectorStore]:
    """The collection of a target, open as long as the block lasts. Raises OSError."""
    with told():
        if target.kind == "lancedb":
            yield _LanceStore(target)
            return
        store = _MilvusStore(target)
        try:
            yield store
        finally:
            store.close()


class _MilvusStore:
    def __init__(self, target: VectorTarget) -> None:
        from pymilvus import MilvusClient

        self._target = target
        self._client: Any = MilvusClient(target.place)

    def close(self) -> None:
        self._client.close()

    def write(self, rows: Iterable[VectorRow]) -> int:
        name, count = self._target.collection, 0
        for batch in _batches(rows):
            if not count and not self._client.has_collection(name):
                self._client.create_collection(
                    name,
                    dimension=len(batch[0].vector),
                    metric_type="COSINE",
                    id_type="string",
                    max_length=_MAX_ID_CHARACTERS,
                    auto_id=False,
                )
            self._client.upsert(name, [{"id": row.id, "text": row.text, "vector": list(row.vector)} for row in batch])
            count += len(batch)
        return count

    def search(self, vector: Sequence[float], most: int) -> list[Found]:
        _require(self._client.has_collection(self._target.collection), self._target)
        self._client.load_collection(self._target.collection)
        (hits,) = self._client.search(
            self._target.collection,
            data=[list(vector)],
            limit=most,
            output_fields=["text"],
            consistency_level="Strong",  # all that has been written, at once
        )
        return [Found(str(hit["id"]), hit["entity"]["text"], float(hit["distance"])) for hit in hits]


class _LanceStore:
    def __init__(self, target: VectorTarget) -> None:
        import lancedb

        self._target = target
        self._database: Any = lancedb.connect(target.place)

    def write(self, rows: Iterable[VectorRow]) -> int:
        count = 0
        for batch in _batches(rows):
            data = _table(batch)
            table = self._open()
            if table is None:
                self._database.create_table(self._target.collection, data)
            else:
                table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(data)
            count += len(batch)
        return count

    def search(self, vector: Sequence[float], most: int) -> list[Found]:
        table = self._open()
        _require(table is not None, self._target)
        hits = table.search(list(vector)).distance_type("cosine").limit(most).to_list()
        return [Found(hit["id"], hit["text"], 1 - float(hit["_distance"])) for hit in hits]

    def _open(self) -> Any:
        """The table; None where there is none."""
        try:
            return self._database.open_table(self._target.collection)
        except ValueError:
            return None


def _batches(rows: Iterable[VectorRow]) -> Iterator[list[VectorRow]]:
    rest = iter(rows)
    while batch := list(islice(rest, _ROWS_AT_ONCE)):
        yield batch


def _table(rows: Sequence[VectorRow]) -> Any:
    import pyarrow as pa

    vectors = pa.array([list(row.vector) for row in rows], pa.list_(pa.float32(), len(rows[0].vector)))
    return pa.table({"id": [row.id for row in rows], "text": [row.text for row in rows], "vector": vectors})


def _require(there: bool, target: VectorTarget) -> None:
    if not there:
        raise OSError(f"there is no {target.collection!r} in it")

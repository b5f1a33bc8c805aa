"""Vector databases that embed jobs write to and `neox-serve search` reads: Milvus (embedded in a file, or a server) and LanceDB.

Collections and tables are created if they do not exist. A row replaces the row with the same id, so writing twice changes nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from deployments.jobs.files.storage import translated_errors
from neox_serve.core.jobs.vector_target import VectorTarget

_ROWS_AT_ONCE = 500
_MAX_ID_CHARACTERS = 512


@dataclass(frozen=True, slots=True)
class VectorRow:
    """A row of a vector database."""

    id: str
    """Unique id."""
    text: str
    """The text that was embedded; empty if token ids were embedded."""
    vector: Sequence[float]
    """The embedding."""


@dataclass(frozen=True, slots=True)
class Found:
    """A row that a search found."""

    id: str
    """Id of the row."""
    text: str
    """The text that was embedded."""
    similarity: float
    """Cosine similarity to the query; 1 means the same direction."""


class VectorStore(Protocol):
    """An open collection. Both methods raise OSError with a message for people."""

    def write(self, rows: Iterable[VectorRow]) -> int:
        """Inserts rows, or replaces those with the same ids, and returns their number."""

    def search(self, vector: Sequence[float], limit: int) -> list[Found]:
        """Returns the `limit` most similar rows, most similar first."""


@contextmanager
def open_store(target: VectorTarget) -> Iterator[VectorStore]:
    """Opens the collection of a target for the duration of the block. Raises OSError."""
    with translated_errors():
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

    def search(self, vector: Sequence[float], limit: int) -> list[Found]:
        _require(self._client.has_collection(self._target.collection), self._target)
        self._client.load_collection(self._target.collection)
        (hits,) = self._client.search(
            self._target.collection,
            data=[list(vector)],
            limit=limit,
            output_fields=["text"],
            consistency_level="Strong",  # so that a search finds everything that was written before
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

    def search(self, vector: Sequence[float], limit: int) -> list[Found]:
        table = self._open()
        _require(table is not None, self._target)
        hits = table.search(list(vector)).distance_type("cosine").limit(limit).to_list()
        return [Found(hit["id"], hit["text"], 1 - float(hit["_distance"])) for hit in hits]

    def _open(self) -> Any:
        """Returns the table; None if it does not exist."""
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


def _require(exists: bool, target: VectorTarget) -> None:
    if not exists:
        raise OSError(f"{target.place} has no collection {target.collection!r}")

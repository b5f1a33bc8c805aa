"""Names of collections in vector databases, which embed jobs can write to and `neox-serve search` reads.

A name is a text such as milvus:vectors.db#functions, milvus:http://host:19530#functions or lancedb:vectors#functions.
"""

import re
from dataclasses import dataclass

_TARGET = re.compile(r"(milvus|lancedb):(.+)#([A-Za-z_][A-Za-z0-9_]{0,254})")
ALLOWED = "milvus:FILE#COLLECTION, milvus:http://HOST:PORT#COLLECTION or lancedb:FOLDER#TABLE"
"""The forms of a name."""


@dataclass(frozen=True, slots=True)
class VectorTarget:
    """A collection in a vector database."""

    kind: str
    """The database: milvus or lancedb."""
    place: str
    """Path or URL of the database."""
    collection: str
    """Name of the collection (Milvus) or table (LanceDB)."""

    @classmethod
    def parse(cls, text: str) -> "VectorTarget":
        """Parses a name. Raises ValueError if it has none of the allowed forms."""
        found = _TARGET.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is invalid; it must be {ALLOWED}, where the collection's name consists of letters, digits and _")
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}#{self.collection}"

"""Where the vectors of an embed job go besides its output, as a text: milvus:vectors.db#functions, milvus:http://host:19530#functions or
lancedb:vectors#functions: a database, where it is, and the collection or table in it."""

import re
from dataclasses import dataclass

_TARGET = re.compile(r"(milvus|lancedb):(.+)#([A-Za-z_][A-Za-z0-9_]{0,254})")
ALLOWED = "milvus:FILE#COLLECTION, milvus:http://HOST:PORT#COLLECTION or lancedb:FOLDER#TABLE"


@dataclass(frozen=True, slots=True)
class VectorTarget:
    """kind: milvus or lancedb. place: a path, or a URL. collection: or table."""

    kind: str
    place: str
    collection: str

    @classmethod
    def parse(cls, text: str) -> "VectorTarget":
        """Raises ValueError."""
        found = _TARGET.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r}: must be {ALLOWED}; the collection's name has letters, digits and _")
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}#{self.collection}"

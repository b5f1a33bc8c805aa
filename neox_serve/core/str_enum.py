"""`StrEnum` for the modules that the client's distribution contains: those run on Python 3.10, whose `enum` does not have it."""

import sys

if sys.version_info >= (3, 11):
    from enum import StrEnum
else:
    from enum import Enum

    class StrEnum(str, Enum):
        """Members are strings. Unlike the standard one it has no `auto()` names: each member states its value."""

        __str__ = str.__str__

        def __format__(self, format_spec: str) -> str:
            return str.__format__(self, format_spec)


__all__ = ["StrEnum"]

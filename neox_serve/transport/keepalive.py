"""Whether a client is still there: one that is silent is asked, one that stays silent is gone."""

from enum import Enum, auto


class Check(Enum):
    """What to do about a client, now."""

    WAIT = auto()
    ASK = auto()
    DROP = auto()


class Keepalive:
    """One client's. The first check drops it unless it has said hello."""

    def __init__(self) -> None:
        self._heard = False
        self._asked = True

    def heard(self) -> None:
        """The client has sent something."""
        self._heard = True

    def check(self) -> Check:
        """What to do, after the time that the last answer gave the client."""
        if self._heard:
            self._heard = self._asked = False
            return Check.WAIT
        if self._asked:
            return Check.DROP
        self._asked = True
        return Check.ASK

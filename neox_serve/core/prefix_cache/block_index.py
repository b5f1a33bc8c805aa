"""Which replica's cache holds which block of prompts, as the replicas' engines say.

Theory of operation: each replica numbers its messages. A message that `restarts` is taken whatever its number: it begins a new account of
all that the replica holds. Any other is taken if its number is the next one; else something was missed, nothing that was known of the
replica is believed any more, and it is to be asked for a restart.

    message          number         what follows
    restarts         any            all known of the replica is replaced by what it holds; the next one counts from here
    goes on          the next       removed blocks leave, then stored ones enter
    goes on          another        GAP: nothing is known; all is ignored until a restart
    goes on          after a GAP    ignored

A replica that starts again comes with a new id and an empty cache.

A block maps to the replicas that have it as bits of one number, so that a prompt's longest prefix on any of 1,000 replicas takes one lookup
and one AND a block. Forgetting a replica takes its bit out of what counts at once; its blocks go later, a few at a time (`sweep`), before
the bit is given to another replica: no call takes long because a cache was large.

Memory: 110 bytes for each block of each replica, measured at a million; up to 180 just after its tables have doubled
(tests/unit/core/prefix_cache/test_block_index.py).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

SWEPT_BLOCKS = 512
"""Blocks that one call of `sweep` takes out: about 0.2 ms."""


@dataclass(frozen=True, slots=True)
class BlockNews:
    """What changed in a replica's cache. number: one more than that of the message before."""

    number: int
    stored: Sequence[int] = ()
    removed: Sequence[int] = ()
    restarts: bool = False


class Holdings:
    """How much of one prompt each replica has. Good until the index changes."""

    def __init__(self, tiers: Sequence[tuple[int, int]], slots: dict[str, int], replica_ids: Sequence[str]) -> None:
        """tiers: blocks, and the bits of the replicas that have as many or more; the most blocks first."""
        self._tiers = tiers
        self._slots = slots
        self._replica_ids = replica_ids

    def __bool__(self) -> bool:
        """Whether any replica has any of it."""
        return bool(self._tiers)

    def blocks(self, replica_id: str) -> int:
        """The prompt's first blocks that a replica has, up to the first that it has not."""
        slot = self._slots.get(replica_id)
        if slot is None:
            return 0
        return next((blocks for blocks, bits in self._tiers if bits >> slot & 1), 0)

    def longest(self, most: int, rng: Random) -> list[str]:
        """The replicas that have the longest prefixes, at most so many, the best first. Of too many equals some are drawn."""
        found: list[str] = []
        above = 0
        for _, bits in self._tiers:
            found += [self._replica_ids[slot] for slot in _drawn(bits & ~above, most - len(found), rng)]
            if len(found) == most:
                break
            above = bits
        return found


NO_HOLDINGS = Holdings((), {}, ())
"""Nothing is known of any cache."""


@dataclass(slots=True)
class _Account:
    """A replica's messages. next_number: None after a gap."""

    slot: int
    next_number: int | None


class BlockIndex:
    """The blocks of all replicas."""

    def __init__(self) -> None:
        # Numbers in dicts and sets, so that the garbage collector has nothing to look at.
        self._bits: dict[int, int] = {}  # by block: the replicas that have it
        self._blocks: list[set[int]] = []  # by slot
        self._one_bit: list[int] = []  # by slot: most blocks are on one replica, and share its number
        self._replica_ids: list[str] = []  # by slot; the name outlives the replica until the slot is used again
        self._free: list[int] = []
        self._retired: deque[int] = deque()
        self._believed = 0
        self._slots: dict[str, int] = {}
        self._accounts: dict[str, _Account] = {}

    def __len__(self) -> int:
        """Blocks on replicas: one that two replicas have counts twice."""
        return sum(len(self._blocks[slot]) for slot in self._slots.values())

    def blocks_on(self, replica_id: str) -> int:
        """Blocks that a replica has."""
        slot = self._slots.get(replica_id)
        return 0 if slot is None else len(self._blocks[slot])

    def needs_restart(self, replica_id: str) -> bool:
        """Whether news of a replica was missed and nothing is believed of it until it begins a new account."""
        account = self._accounts.get(replica_id)
        return account is not None and account.next_number is None

    def take(self, replica_id: str, news: BlockNews) -> bool:
        """Takes a replica's news. False where news before it was missed: the replica is then to be asked for a restart, once."""
        if news.restarts:
            self.forget(replica_id)
            self._accounts[replica_id] = _Account(self._new_slot(replica_id), news.number)
        account = self._accounts.get(replica_id)
        if account is None:  # never heard of it: its first message was missed
            self._accounts[replica_id] = _Account(-1, None)
            return False
        if account.next_number != news.number:
            return self._miss(replica_id, account)
        account.next_number = news.number + 1
        self._remove(account.slot, news.removed)
        self._store(account.slot, news.stored)
        return True

    def forget(self, replica_id: str) -> None:
        """A replica is gone, or nothing known of it counts any more."""
        self._accounts.pop(replica_id, None)
        self._retire(replica_id)

    def look_up(self, blocks: Sequence[int]) -> Holdings:
        """Which replicas have how many of a prompt's blocks, given first to last."""
        tiers: list[tuple[int, int]] = []
        holders, bits_of = self._believed, self._bits.get
        for number, block in enumerate(blocks):
            having = holders & bits_of(block, 0)
            if having != holders:
                if number:
                    tiers.append((number, holders))
                if not having:
                    break
                holders = having
        else:
            if blocks and holders:
                tiers.append((len(blocks), holders))
        return Holdings(tiers[::-1], self._slots, self._replica_ids)

    def sweep(self, most: int = SWEPT_BLOCKS) -> None:
        """Takes out blocks of replicas that were forgotten, at most so many; to be called now and then."""
        while self._retired and most > 0:
            slot = self._retired[0]
            blocks = self._blocks[slot]
            for _ in range(min(most, len(blocks))):
                self._take_bit(blocks.pop(), self._one_bit[slot])
                most -= 1
            if blocks:
                return
            self._blocks[slot] = set()  # a set keeps its room when it is emptied
            self._free.append(self._retired.popleft())

    def _miss(self, replica_id: str, account: _Account) -> bool:
        """True where the gap was known already and there is nothing to ask."""
        if account.next_number is None:
            return True
        account.next_number = None
        self._retire(replica_id)
        return False

    def _retire(self, replica_id: str) -> None:
        slot = self._slots.pop(replica_id, None)
        if slot is not None:
            self._believed &= ~self._one_bit[slot]
            self._retired.append(slot)

    def _new_slot(self, replica_id: str) -> int:
        if self._free:
            slot = self._free.pop()
            self._replica_ids[slot] = replica_id
        else:
            slot = len(self._blocks)
            self._blocks.append(set())
            self._one_bit.append(1 << slot)
            self._replica_ids.append(replica_id)
        self._slots[replica_id] = slot
        self._believed |= self._one_bit[slot]
        return slot

    def _store(self, slot: int, blocks: Sequence[int]) -> None:
        bit, bits_of = self._one_bit[slot], self._bits
        for block in blocks:
            known = bits_of.get(block)
            bits_of[block] = bit if known is None else known | bit
        self._blocks[slot].update(blocks)

    def _remove(self, slot: int, blocks: Sequence[int]) -> None:
        mine, bit = self._blocks[slot], self._one_bit[slot]
        for block in blocks:
            if block in mine:
                mine.remove(block)
                self._take_bit(block, bit)

    def _take_bit(self, block: int, bit: int) -> None:
        left = self._bits[block] & ~bit
        if left:
            self._bits[block] = left
        else:
            del self._bits[block]


def _drawn(bits: int, most: int, rng: Random) -> list[int]:
    """Numbers of bits that are set, at most so many; where there are more, those after a random one, around the end."""
    if bits.bit_count() <= most:
        return list(_set_bits(bits))
    low = bits & ((1 << rng.randrange(bits.bit_length())) - 1)
    numbers: list[int] = []
    for part in (bits ^ low, low):
        for number in _set_bits(part):
            if len(numbers) == most:
                return numbers
            numbers.append(number)
    return numbers


def _set_bits(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest

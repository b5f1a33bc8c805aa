"""The router's index of which replica holds which prompt blocks in its prefix cache, built from the replicas' reports.

Theory of operation: each replica numbers its messages. A message with `restarts` starts over with the complete contents of the cache and is
accepted with any number. Every other message is accepted only if its number is the next one. Otherwise a message was lost: the index drops
everything it knows about the replica, and the caller must ask the replica for a restart.

    message       number         effect
    restart       any            replaces everything known about the replica; the next number counts from here
    change        the next       removed blocks leave, then stored blocks enter
    change        any other      GAP: nothing is known; changes are ignored until a restart
    change        after a GAP    ignored

A replica that restarts its process has a new id and an empty cache.

Each block maps to an integer with one bit per replica that holds it. Finding the longest prefix of a prompt on 1,000 replicas takes one
lookup and one AND per block. Forgetting a replica clears its bit from the mask of valid bits at once. Its blocks are removed later, a few
per call (`sweep`), before the bit is reused, so that no call takes long because a cache was large.

Memory: 110 bytes per block and replica, measured with a million blocks, and up to 180 bytes just after a table has doubled
(tests/unit/core/prefix_cache/test_block_index.py).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

SWEPT_BLOCKS = 512
"""Number of blocks that one call of `sweep` removes, in about 0.2 ms."""


@dataclass(frozen=True, slots=True)
class BlockNews:
    """A replica's report of changes to its cache."""

    number: int
    """One more than the number of the previous message."""
    stored: Sequence[int] = ()
    removed: Sequence[int] = ()
    restarts: bool = False
    """Whether `stored` is the complete contents of the cache."""


class Holdings:
    """How many blocks of one prompt each replica holds. Valid until the index changes."""

    def __init__(self, tiers: Sequence[tuple[int, int]], slots: dict[str, int], replica_ids: Sequence[str]) -> None:
        """tiers: pairs of a number of blocks and the bits of the replicas that hold at least as many; most blocks first."""
        self._tiers = tiers
        self._slots = slots
        self._replica_ids = replica_ids

    def __bool__(self) -> bool:
        """Whether any replica holds the first block."""
        return bool(self._tiers)

    def blocks(self, replica_id: str) -> int:
        """Returns how many leading blocks of the prompt the replica holds."""
        slot = self._slots.get(replica_id)
        if slot is None:
            return 0
        return next((blocks for blocks, bits in self._tiers if bits >> slot & 1), 0)

    def longest(self, limit: int, rng: Random) -> list[str]:
        """Returns up to `limit` replicas with the longest prefixes, longest first. If too many are equal, some are drawn at random."""
        found: list[str] = []
        above = 0
        for _, bits in self._tiers:
            found += [self._replica_ids[slot] for slot in _drawn(bits & ~above, limit - len(found), rng)]
            if len(found) == limit:
                break
            above = bits
        return found


NO_HOLDINGS = Holdings((), {}, ())
"""Holdings if nothing is known about any cache."""


@dataclass(slots=True)
class _Account:
    """The message stream of a replica."""

    slot: int
    """Bit number of the replica."""
    next_number: int | None
    """Expected number of the next message; None after a gap."""


class BlockIndex:
    """The blocks of all replicas."""

    def __init__(self) -> None:
        # Only integers in dicts and sets: the garbage collector does not traverse them.
        self._bits: dict[int, int] = {}  # block -> bits of the replicas that hold it
        self._blocks: list[set[int]] = []  # slot -> blocks
        self._one_bit: list[int] = []  # slot -> its bit; most blocks are on one replica and share this integer
        self._replica_ids: list[str] = []  # slot -> replica; kept until the slot is reused
        self._free: list[int] = []
        self._retired: deque[int] = deque()
        self._believed = 0
        self._slots: dict[str, int] = {}
        self._accounts: dict[str, _Account] = {}

    def __len__(self) -> int:
        """Number of blocks, counting a block once for each replica that holds it."""
        return sum(len(self._blocks[slot]) for slot in self._slots.values())

    def blocks_on(self, replica_id: str) -> int:
        """Returns the number of blocks that a replica holds."""
        slot = self._slots.get(replica_id)
        return 0 if slot is None else len(self._blocks[slot])

    def needs_restart(self, replica_id: str) -> bool:
        """Returns whether a message of the replica was lost, so that its changes are ignored until it restarts its reports."""
        account = self._accounts.get(replica_id)
        return account is not None and account.next_number is None

    def take(self, replica_id: str, news: BlockNews) -> bool:
        """Applies a replica's message. Returns False on the first gap: the caller must then ask the replica for a restart."""
        if news.restarts:
            self.forget(replica_id)
            self._accounts[replica_id] = _Account(self._new_slot(replica_id), news.number)
        account = self._accounts.get(replica_id)
        if account is None:  # its first message was lost
            self._accounts[replica_id] = _Account(-1, None)
            return False
        if account.next_number != news.number:
            return self._miss(replica_id, account)
        account.next_number = news.number + 1
        self._remove(account.slot, news.removed)
        self._store(account.slot, news.stored)
        return True

    def forget(self, replica_id: str) -> None:
        """Drops everything known about a replica."""
        self._accounts.pop(replica_id, None)
        self._retire(replica_id)

    def look_up(self, blocks: Sequence[int]) -> Holdings:
        """Returns which replicas hold how many of a prompt's blocks. blocks: first to last."""
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

    def sweep(self, max_blocks: int = SWEPT_BLOCKS) -> None:
        """Removes up to `max_blocks` blocks of forgotten replicas. Call it periodically."""
        while self._retired and max_blocks > 0:
            slot = self._retired[0]
            blocks = self._blocks[slot]
            for _ in range(min(max_blocks, len(blocks))):
                self._take_bit(blocks.pop(), self._one_bit[slot])
                max_blocks -= 1
            if blocks:
                return
            self._blocks[slot] = set()  # an emptied set keeps its memory
            self._free.append(self._retired.popleft())

    def _miss(self, replica_id: str, account: _Account) -> bool:
        """Records a gap. Returns True if it was already known, so that no restart needs to be requested."""
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


def _drawn(bits: int, limit: int, rng: Random) -> list[int]:
    """Returns up to `limit` positions of set bits. If there are more, it starts at a random position and wraps around."""
    if bits.bit_count() <= limit:
        return list(_set_bits(bits))
    low = bits & ((1 << rng.randrange(bits.bit_length())) - 1)
    numbers: list[int] = []
    for part in (bits ^ low, low):
        for number in _set_bits(part):
            if len(numbers) == limit:
                return numbers
            numbers.append(number)
    return numbers


def _set_bits(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest

"""Merkle trees over a log that only grows: roots, and proofs about them (RFC 9162, section 2.1).

A leaf is the SHA-256 of 0x00 and the entry, a node that of 0x01 and its two children. Whoever keeps a root can later be
shown, with a handful of hashes, that an entry is in that log, or that a longer log still begins with it. Nothing here
holds the tree: a `Frontier` is the few hashes that the next entry needs, and a proof is computed in one pass over the
leaf hashes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

HASH_BYTES = 32
EMPTY = hashlib.sha256().digest()
"""The root of no entries."""

Range = tuple[int, int]
"""Leaves from the first number up to, and without, the second."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(slots=True)
class Frontier:
    """A tree that leaves are added to: the roots of its complete subtrees, largest first; one per bit of `size`."""

    size: int = 0
    peaks: list[bytes] = field(default_factory=list)

    def add(self, leaf: bytes) -> None:
        """Add one leaf hash."""
        peaks, size = self.peaks, self.size
        peaks.append(leaf)
        while size & 1:
            right = peaks.pop()
            peaks[-1] = node_hash(peaks[-1], right)
            size >>= 1
        self.size += 1

    def root(self) -> bytes:
        """The root of everything that was added."""
        if not self.peaks:
            return EMPTY
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root

    def dump(self) -> bytes:
        """The peaks, one after the other; with the size, all that `load` needs."""
        return b"".join(self.peaks)

    @classmethod
    def load(cls, size: int, peaks: bytes) -> Frontier:
        """What `dump` made; ValueError if that cannot belong to a tree of this size."""
        if size < 0 or len(peaks) != HASH_BYTES * size.bit_count():
            raise ValueError("the hashes are not those of a tree of this size")
        return cls(size, [peaks[at : at + HASH_BYTES] for at in range(0, len(peaks), HASH_BYTES)])


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """The subtrees whose roots prove that leaf `index` (from 0) is in a tree of `size`, lowest first (section 2.1.3.1).

    ValueError unless 0 <= index < size.
    """
    if not 0 <= index < size:
        raise ValueError("there is no such leaf")
    found: list[Range] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            low = middle
    return found[::-1]


def consistency_ranges(first: int, second: int) -> list[Range]:
    """The subtrees whose roots prove that a tree of `second` begins with one of `first`, in order (section 2.1.4.1).

    ValueError unless 0 < first <= second.
    """
    if not 0 < first <= second:
        raise ValueError("the older tree must have entries, and no more than the newer one")
    found: list[Range] = []
    low, high, wanted, is_known = 0, second, first, True
    while wanted != high - low:
        middle = low + _split(high - low)
        if wanted <= middle - low:
            found.append((middle, high))
            high = middle
        else:
            found.append((low, middle))
            wanted -= middle - low
            low, is_known = middle, False
    if not is_known:
        found.append((low, high))
    return found[::-1]


def roots_of(ranges: Sequence[Range], leaves: Iterable[bytes]) -> list[bytes]:
    """The root over each of these ranges, in one pass over the leaf hashes; ValueError if the leaves end too early."""
    waiting = sorted(set(ranges), reverse=True)
    done: dict[Range, bytes] = {}
    tree = Frontier()
    for at, leaf in enumerate(leaves):
        if not waiting:
            break
        low, high = waiting[-1]
        if at < low:
            continue
        tree.add(leaf)
        if at + 1 == high:
            done[waiting.pop()] = tree.root()
            tree = Frontier()
    if waiting:
        raise ValueError("the log is shorter than the tree")
    return [done[one] for one in ranges]


def is_included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether the proof shows this leaf hash at `index` in the tree with this root (section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node_hash(step, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, step)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def is_consistent(first: int, second: int, proof: Sequence[bytes], older: bytes, newer: bytes) -> bool:
    """Whether the proof shows that the tree with root `newer` begins with that of root `older` (section 2.1.4.2)."""
    if not 0 < first <= second:
        return False
    if first == second:
        return not proof and older == newer
    path = list(proof)
    if first & (first - 1) == 0:
        path.insert(0, older)
    if not path:
        return False
    at, last = first - 1, second - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = path[0]
    for step in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            before, after = node_hash(step, before), node_hash(step, after)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, step)
        at, last = at >> 1, last >> 1
    return last == 0 and before == older and after == newer


def _split(size: int) -> int:
    """The largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)

"""Merkle trees: the shape of RFC 9162, held against its definition as recursion; proofs that fit nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import merkle
from appliance.merkle import Frontier, leaf_hash
from tests.support import examples

LEAVES = [leaf_hash(b"entry %d" % number) for number in range(130)]

# Certificate Transparency's own published test tree: eight entries and the roots of its first n of them
# (google/certificate-transparency, merkletree/merkle_tree_test.cc, Apache-2.0).
CT_ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
CT_ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def root_by_definition(leaves: Sequence[bytes]) -> bytes:
    """Section 2.1.1 word by word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return merkle.node_hash(root_by_definition(leaves[:split]), root_by_definition(leaves[split:]))


def tree(leaves: Sequence[bytes]) -> Frontier:
    made = Frontier()
    for leaf in leaves:
        made.add(leaf)
    return made


def test_the_published_tree_of_certificate_transparency_has_its_roots() -> None:
    made = Frontier()
    assert made.root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for entry, root in zip(CT_ENTRIES, CT_ROOTS, strict=True):
        made.add(leaf_hash(entry))
        assert made.root().hex() == root


@pytest.mark.parametrize("size", range(70))
def test_a_frontier_has_the_root_of_the_definition_and_survives_being_stored(size: int) -> None:
    made = tree(LEAVES[:size])
    assert made.root() == root_by_definition(LEAVES[:size])
    again = Frontier.load(size, made.dump())
    again.add(LEAVES[size])
    assert again.root() == root_by_definition(LEAVES[: size + 1])


@pytest.mark.parametrize(("size", "octets"), [(-1, 0), (0, 32), (3, 32), (4, 31), (7, 97)])
def test_a_stored_frontier_that_cannot_be_is_refused(size: int, octets: int) -> None:
    with pytest.raises(ValueError, match="not those of a tree"):
        Frontier.load(size, bytes(octets))


@given(st.data())
@examples(200)
def test_every_entry_can_be_proved_and_no_other_proof_fits(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 130))
    index = data.draw(st.integers(0, size - 1))
    root = tree(LEAVES[:size]).root()
    proof = merkle.roots_of(merkle.inclusion_ranges(index, size), LEAVES)
    assert len(proof) <= 8
    assert merkle.is_included(LEAVES[index], index, size, proof, root)
    assert not merkle.is_included(leaf_hash(b"another"), index, size, proof, root)
    other = data.draw(st.integers(0, 130).filter(lambda one: one != index))
    assert not merkle.is_included(LEAVES[index], other, size, proof, root)
    assert not merkle.is_included(LEAVES[index], index, size, [*proof, root], root)
    if proof:
        at = data.draw(st.integers(0, len(proof) - 1))
        broken = [*proof[:at], bytes([proof[at][0] ^ 1]) + proof[at][1:], *proof[at + 1 :]]
        assert not merkle.is_included(LEAVES[index], index, size, broken, root)
        assert not merkle.is_included(LEAVES[index], index, size, proof[:-1], root)


@given(st.data())
@examples(200)
def test_a_longer_log_is_proved_to_begin_with_the_older_one_and_with_no_other(data: st.DataObject) -> None:
    second = data.draw(st.integers(1, 130))
    first = data.draw(st.integers(1, second))
    older, newer = tree(LEAVES[:first]).root(), tree(LEAVES[:second]).root()
    proof = merkle.roots_of(merkle.consistency_ranges(first, second), LEAVES)
    assert merkle.is_consistent(first, second, proof, older, newer)
    changed = [leaf_hash(b"rewritten"), *LEAVES[1:]]
    assert not merkle.is_consistent(first, second, proof, tree(changed[:first]).root(), newer)
    assert not merkle.is_consistent(first, second, proof, older, tree(changed[:second]).root())
    assert not merkle.is_consistent(first, second, [*proof, newer], older, newer)
    # a rewritten log has no proof of its own that would satisfy whoever keeps the older root
    forged = merkle.roots_of(merkle.consistency_ranges(first, second), changed)
    assert not merkle.is_consistent(first, second, forged, older, tree(changed[:second]).root())


@pytest.mark.parametrize(("index", "size"), [(0, 0), (5, 5), (-1, 5)])
def test_there_is_no_proof_for_an_entry_that_is_not_there(index: int, size: int) -> None:
    with pytest.raises(ValueError, match="no such leaf"):
        merkle.inclusion_ranges(index, size)
    assert not merkle.is_included(LEAVES[0], index, size, [], LEAVES[0])


@pytest.mark.parametrize(("first", "second"), [(0, 5), (6, 5), (-1, 5)])
def test_there_is_no_proof_between_trees_in_the_wrong_order(first: int, second: int) -> None:
    with pytest.raises(ValueError, match="older tree"):
        merkle.consistency_ranges(first, second)
    assert not merkle.is_consistent(first, second, [], LEAVES[0], LEAVES[1])


def test_a_log_that_is_too_short_for_its_tree_is_said_to_be() -> None:
    with pytest.raises(ValueError, match="shorter"):
        merkle.roots_of([(0, 9)], LEAVES[:8])

"""RSA keys that look like any other and are not: a modulus that somebody can factor.

ROCA (CVE-2017-15361), primes too close to each other (Fermat), a small factor, and lists of moduli whose private keys
are known (CVE-2008-0166: Debian's OpenSSL of 2006 to 2008). Elliptic curve keys have no such marks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from math import isqrt

from cryptography.hazmat.primitives.asymmetric import rsa

from est.errors import KeyWeak
from est.keys import PublicKey, is_ec

FERMAT_ROUNDS = 100
"""Primes that differ in their lower half alone fall in the first round, and close ones soon after."""

_SMALL = 751
_ROCA_LARGEST = 701
"""For 2048-bit keys the generator with the flaw takes its primes modulo the product of all primes up to this one, for
longer ones of more (Nemec and others, The Return of Coppersmith's Attack, table 1)."""
_LISTED_DIGITS = 20


def check(key: PublicKey) -> None:
    """Raises KeyWeak, whose field `weakness` says which."""
    if is_ec(key) or not isinstance(key, rsa.RSAPublicKey):
        return
    modulus = key.public_numbers().n
    if any(modulus % prime == 0 for prime in _primes(_SMALL)):
        raise KeyWeak("the RSA modulus has a small factor", weakness="small-factor")
    if _has_close_primes(modulus):
        raise KeyWeak("the primes of the RSA key are too close to each other", weakness="close-primes")
    if all(modulus % prime in powers for prime, powers in _roca_marks()):
        raise KeyWeak("the RSA key comes from a generator with the ROCA flaw (CVE-2017-15361)", weakness="roca")


class ListedKeys:
    """Moduli that are known to be weak, by the last 20 hex digits of a SHA-1 digest, as Debian lists them."""

    def __init__(self, digests: Iterable[str] = ()) -> None:
        self._digests = frozenset(bytes.fromhex(one) for one in digests)

    def __len__(self) -> int:
        return len(self._digests)

    @classmethod
    def read(cls, *texts: str) -> ListedKeys:
        """From files of openssl-blacklist: one digest per line, # begins a comment; raises ValueError naming a line."""
        found = []
        for text in texts:
            for number, line in enumerate(text.splitlines(), 1):
                digest = line.partition("#")[0].strip().lower()
                if not digest:
                    continue
                if len(digest) != _LISTED_DIGITS or not set(digest) <= set("0123456789abcdef"):
                    raise ValueError(f"line {number} is not {_LISTED_DIGITS} hex digits")
                found.append(digest)
        return cls(found)

    def check(self, key: PublicKey) -> None:
        """Raises KeyWeak for a key on the list."""
        if not self._digests or not isinstance(key, rsa.RSAPublicKey):
            return
        written = f"Modulus={key.public_numbers().n:X}\n".encode()
        if hashlib.sha1(written, usedforsecurity=False).digest()[-_LISTED_DIGITS // 2 :] in self._digests:
            raise KeyWeak("the private half of this RSA key is publicly known", weakness="listed")


def _has_close_primes(modulus: int) -> bool:
    """Fermat's factorisation, a few rounds: n = a*a - b*b with a little above the root of n."""
    a = isqrt(modulus) + 1
    rest = a * a - modulus
    for _ in range(FERMAT_ROUNDS):
        # squares end in these hex digits alone, which saves three roots of four
        if rest & 15 in (0, 1, 4, 9) and isqrt(rest) ** 2 == rest:
            return True
        rest += 2 * a + 1
        a += 1
    return False


@cache
def _roca_marks() -> tuple[tuple[int, frozenset[int]], ...]:
    """Primes with the powers of 65537 modulo each: every modulus with the flaw is one of them for all primes.

    Primes of which 65537 generates everything tell nothing and are left out. Of good keys about one in 2^155 passes.
    """
    marks = []
    for prime in _primes(_ROCA_LARGEST):
        powers = {1}
        power = 65537 % prime
        while power not in powers:
            powers.add(power)
            power = power * 65537 % prime
        if len(powers) < prime - 1:
            marks.append((prime, frozenset(powers)))
    return tuple(sorted(marks, key=lambda mark: len(mark[1]) / mark[0]))


@cache
def _primes(largest: int) -> tuple[int, ...]:
    """The primes up to this one."""
    found = [number for number in range(2, largest + 1) if all(number % one for one in range(2, isqrt(number) + 1))]
    return tuple(found)

"""RSA keys that somebody can factor or already knows, made weak for real; good ones pass."""

from __future__ import annotations

import random
from functools import cache
from math import isqrt, prod
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from est import weak
from est.errors import KeyNotAccepted, KeyWeak
from est.keys import check_key
from est.weak import ListedKeys
from tests.support import key

DEBIAN = Path(__file__).parent.parent / "vectors" / "weak-keys" / "debian-2048.pem"
DEBIAN_LINE = "d10d992069d592fe1766"
_PRIMES = [one for one in range(2, 702) if all(one % other for other in range(2, isqrt(one) + 1))]
_DICE = random.Random(20260112)  # noqa: S311 - the keys are meant to be weak


def _is_prime(number: int) -> bool:
    if any(number % one == 0 for one in _PRIMES):
        return number in _PRIMES
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11):
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def _next_prime(number: int) -> int:
    number |= 1
    while not _is_prime(number):
        number += 2
    return number


def private_of(p: int, q: int) -> rsa.RSAPrivateKey:
    """An RSA key of these primes."""
    d = pow(65537, -1, (p - 1) * (q - 1))
    numbers = rsa.RSAPrivateNumbers(
        p=p, q=q, d=d, dmp1=rsa.rsa_crt_dmp1(d, p), dmq1=rsa.rsa_crt_dmq1(d, q), iqmp=rsa.rsa_crt_iqmp(p, q),
        public_numbers=rsa.RSAPublicNumbers(65537, p * q),
    )  # fmt: skip
    return numbers.private_key()


@cache
def close_primes() -> rsa.RSAPrivateKey:
    """The second prime is the next one after the first and a little."""
    p = _next_prime(_DICE.getrandbits(1024) | 3 << 1022)
    return private_of(p, _next_prime(p + (1 << 500)))


@cache
def roca() -> rsa.RSAPrivateKey:
    """Primes as the generator with the flaw makes them: k*M + 65537^a modulo M, M = the first 126 primes multiplied."""
    modulus = prod(_PRIMES[:126])

    def prime() -> int:
        while True:
            k = _DICE.getrandbits(1024 - modulus.bit_length() + 1)
            found = k * modulus + pow(65537, _DICE.getrandbits(256), modulus)
            if found >> 1022 == 3 and _is_prime(found):
                return found

    return private_of(prime(), prime())


def weakness(private: rsa.RSAPrivateKey | rsa.RSAPublicKey) -> object:
    public = private if isinstance(private, rsa.RSAPublicKey) else private.public_key()
    with pytest.raises(KeyWeak) as caught:
        weak.check(public)
    return caught.value.fields["weakness"]


@pytest.mark.slow
@pytest.mark.req("E-204")
def test_keys_with_the_roca_flaw_close_primes_or_a_small_factor_are_refused_by_name() -> None:
    assert weakness(roca()) == "roca"
    assert weakness(close_primes()) == "close-primes"
    small = rsa.RSAPublicNumbers(65537, 641 * _next_prime(1 << 2040)).public_key()
    assert weakness(small) == "small-factor"


@pytest.mark.slow
@pytest.mark.req("E-204")
def test_good_keys_pass_and_so_does_a_distance_that_fermat_cannot_bridge() -> None:
    for bits in (2048, 3072):
        weak.check(rsa.generate_private_key(65537, bits).public_key())
    weak.check(key("good").public_key())
    p = _next_prime(_DICE.getrandbits(1024) | 3 << 1022)
    weak.check(private_of(p, _next_prime(p - (1 << 1000))).public_key())


@pytest.mark.req("E-204")
def test_a_key_of_debians_broken_generator_is_found_on_debians_list() -> None:
    listed = ListedKeys.read(f"# a comment\n{'0' * 20}\n\n{DEBIAN_LINE.upper()}  # Testlib CA\n")
    assert len(listed) == 2
    public = x509.load_pem_x509_certificate(DEBIAN.read_bytes()).public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    weak.check(public)  # nothing in the number itself tells
    with pytest.raises(KeyWeak) as caught:
        listed.check(public)
    assert caught.value.fields["weakness"] == "listed"
    for other in (rsa.generate_private_key(65537, 2048).public_key(), key("good").public_key()):
        listed.check(other)
    ListedKeys().check(public)


@pytest.mark.parametrize("line", ["d10d992069d592fe176", "d10d992069d592fe17666", "x" * 20, "Modulus=AB"])
def test_a_list_with_anything_else_in_it_is_refused_with_the_line(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        ListedKeys.read(f"{DEBIAN_LINE}\n{line}\n")


@pytest.mark.req("E-204")
@pytest.mark.parametrize("exponent", [3, 65536, 65538, (1 << 256) + 1])
def test_exponents_are_odd_and_neither_small_nor_endless(exponent: int) -> None:
    numbers = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    try:
        odd = rsa.RSAPublicNumbers(exponent, numbers.n).public_key()
    except ValueError:
        return  # the library does not even take it
    with pytest.raises(KeyNotAccepted):
        check_key(odd)


def test_elliptic_curve_keys_have_no_such_marks() -> None:
    weak.check(ec.generate_private_key(ec.SECP384R1()).public_key())

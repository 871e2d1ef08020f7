"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)."""

from __future__ import annotations

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK32 = 0xFFFFFFFF


def philox4x32_10(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Returns the four 32-bit words for a counter of four words and a key of two."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0 = _MULTIPLIERS[0] * c0
        product1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32) ^ c1 ^ k0,
            product1 & _MASK32,
            (product0 >> 32) ^ c3 ^ k1,
            product0 & _MASK32,
        )
        k0 = (k0 + _WEYL[0]) & _MASK32
        k1 = (k1 + _WEYL[1]) & _MASK32
    return c0, c1, c2, c3


def uniform_double(seed: int, stream: int, position: int, purpose: int = 0) -> float:
    """Returns the documented draw in [0, 1): 53 bits of a block keyed by a block.

    Seed and stream name a sequence: one block over them gives that sequence's key and a counter
    word; a second one, over position and purpose, is the draw.
    """
    low, high, third, _ = philox4x32_10(
        (stream & _MASK32, stream >> 32, 0x676C696D, 0x70736521), (seed & _MASK32, seed >> 32)
    )
    word0, word1, _, _ = philox4x32_10(
        (position & _MASK32, position >> 32, purpose, third), (low, high)
    )
    return float(((word1 << 32) | word0) >> 11) * 2.0**-53

"""Random numbers that depend on what they are for, never on the batch in which they are used."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

WORDS = 2**32
"""Values that `hashed` may have, from 0."""

_GOLDEN = 0x9E3779B9  # since the finaliser leaves 0 as it is, and a key of zeros is a common one


def generator(*key: int | str) -> torch.Generator:
    """Return a source of random numbers for this key alone, such as `("order", seed, sample)`.

    Hashed, because with seed + sample, say, sample 1 of seed 0 would draw as sample 0 of seed 1 does. PyTorch's
    generator on the CPU reads 32 bits of its seed.
    """
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def hashed(first: Tensor, *others: Tensor | int) -> Tensor:
    """Return a number below `WORDS` for each key of whole numbers, of the shape that they have together.

    Each number is mixed in before the next, or sample 0 under seed 1 were sample 1 under seed 0.
    """
    word = _mix(first + _GOLDEN)
    for other in others:
        word = _mix(word ^ (other & (WORDS - 1)))
    return word


def _mix(word: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser, in int64 so that every backend computes the same."""
    word = word & (WORDS - 1)
    word = word ^ (word >> 16)
    word = (word * 0x85EBCA6B) & (WORDS - 1)
    word = word ^ (word >> 13)
    word = (word * 0xC2B2AE35) & (WORDS - 1)
    return word ^ (word >> 16)

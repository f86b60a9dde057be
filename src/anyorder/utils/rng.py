"""Random numbers that depend on what they are for, never on the batch in which they are used."""

from __future__ import annotations

import hashlib

import torch


def generator(*key: int | str) -> torch.Generator:
    """Return a source of random numbers for this key alone, such as `("order", seed, sample)`.

    Hashed, because with seed + sample, say, sample 1 of seed 0 would draw as sample 0 of seed 1 does. PyTorch's
    generator on the CPU reads 32 bits of its seed.
    """
    digest = hashlib.blake2b(" ".join(map(str, key)).encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

"""Seeds: the run's seed determines the seed of every conversation and turn, wherever and whenever they run."""

from __future__ import annotations

import hashlib

_MASK = (1 << 63) - 1  # seeds are non-negative and fit a signed 64-bit column


def conversation_seed(run_seed: int, conversation: str) -> int:
    """Return the seed of a conversation from the run's seed and the conversation's id (BLAKE2b, 63 bits)."""
    digest = hashlib.blake2b(f"{run_seed}/{conversation}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & _MASK


def turn_seed(seed: int, turn: int) -> int:
    """Return the seed of a turn: splitmix64 (Steele, Lea and Flood 2014) of conversation seed and turn, 63 bits."""
    z = (seed + turn * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & _MASK

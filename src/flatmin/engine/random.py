"""Draws that depend on a seed and on counters alone.

A coin of step 1,000 needs no generator whose state would have to be saved, moved and kept equal
between ranks: the seed is a hyperparameter and the step count is in every checkpoint.
"""

import torch

_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): each bit in reaches each bit out."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def uniform(seed: int, *counters: int) -> float:
    """A number in [0, 1) for this seed and these counters, the same on every machine."""
    return (_mixed(seed, *counters) >> 11) / (1 << 53)


def generator(device: torch.device, seed: int, *counters: int) -> torch.Generator:
    """A generator on a device that begins at this seed and these counters."""
    return torch.Generator(device).manual_seed(_mixed(seed, *counters) >> 1)


def _mixed(seed: int, *counters: int) -> int:
    state = _mix((seed + 0x9E3779B97F4A7C15) & _MASK)
    for counter in counters:
        state = _mix((state + (counter + 1) * 0x9E3779B97F4A7C15) & _MASK)
    return state

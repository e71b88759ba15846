"""Every random number is a pure function of (seed, purpose, step, slot): no generator state to save or to replay."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a draw is for, so that no two uses share a stream."""

    TOKEN_DROP = 1
    STOCHASTIC_DEPTH = 2
    AUGMENT = 3
    REPLACEMENT = 4
    MIXTURE = 5
    INITIALISE = 6
    DROPOUT = 7
    BOX_SAMPLE = 12


def generator(seed: int, purpose: Purpose, *position: int) -> np.random.Generator:
    """The generator of one draw; equal arguments give equal numbers on every machine and in every process."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, int(purpose), *position))))

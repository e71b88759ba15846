"""What every refusal of an image file must look like, and files damaged so as to be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitp.errors import VitpError
from vitp.images.decode import ImageError


def refused(code: str, path: Path, read: Callable[[], object]) -> str:
    """The message with which reading is refused: one sentence of two halves, beginning with the file."""
    with pytest.raises(ImageError) as caught:
        read()
    message = str(caught.value)
    assert caught.value.code == code, message
    assert message.startswith(f"{path}: ")
    assert message.count("; ") == 1
    assert "\n" not in message
    return message


def refusals_of_flipped(
    data: bytes,
    path: Path,
    read: Callable[[], bool],
    *,
    seed: int,
    rounds: int,
    within: tuple[int, int],
    refusal: type[VitpError] | tuple[type[VitpError], ...] = ImageError,
) -> list[str]:
    """The messages when three bytes of a range are drawn anew each round; reading must give True, or refuse."""
    random = np.random.default_rng(seed)
    refusals = []
    for _ in range(rounds):
        damaged = bytearray(data)
        for place in random.integers(*within, 3):
            damaged[place] = int(random.integers(0, 256))
        path.write_bytes(bytes(damaged))
        try:
            assert read()
        except refusal as error:
            refusals.append(str(error))
    assert "\n" not in "".join(refusals)
    return refusals

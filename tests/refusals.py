"""What every refusal of an image file must look like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

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

"""One instruction sample, whatever file it came from.

Records in the three usual layouts become the same immutable `Sample`:

* InternVL / LLaVA: ``{"image": str | [str], "conversations": [{"from": "human", "value": ...}, ...]}``
* ShareGPT-style: ``{"images": [str], "messages": [{"role": "user", "content": ...}, ...]}``
* text only: no image key.

A turn's text marks the place of each image with ``<image>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]
IMAGE_MARK = "<image>"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation; `text` holds an ``<image>`` mark where an image goes (user turns only)."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One instruction record.

    `images` are the paths as written in the file, relative to the source's root; `where` is ``file:line``.
    The number of ``<image>`` marks over all user turns equals ``len(images)``.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    where: str

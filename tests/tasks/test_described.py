"""Files of segmenters and detectors whose description is damaged or of another version: one sentence that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vitp.backbone.vit import METADATA, BackboneConfig
from vitp.errors import CheckpointError
from vitp.tasks.detect import DetectorParts, Shown, load_detector
from vitp.tasks.segment import InferenceConfig, SegmenterParts, load_dense

TINY = BackboneConfig(architecture="vit_tiny_patch16_224", image_size=32, patch_size=8, width=16, depth=1, heads=1)
COMMON = {"parts": {}, "classes": ["a", "b"]}
DETECTOR = {
    **COMMON,
    "detector": TINY.model_dump(),
    "parts": DetectorParts().model_dump(),
    "shown": Shown().model_dump(),
}
SEGMENTER = {
    **COMMON, "segmenter": TINY.model_dump(), "parts": SegmenterParts().model_dump(),
    "inference": InferenceConfig().model_dump(),
}  # fmt: skip


def write(path: Path, about: object) -> Path:
    file = path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, file, metadata={METADATA: json.dumps(about)})
    return file


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("parts", {"strange": 1}, r"its description cannot be read \(parts\.strange: "),
        ("parts", 7, r"cannot be read \(parts: "),
        ("classes", None, "its description names no classes"),
        ("classes", "ab", "its description names no classes"),
        ("classes", [1, 2], "its description names no classes"),
        ("own", {"width": 3}, r"cannot be read \(\w+\.architecture: Field required\)"),
        ("own", None, r"cannot be read \(\w+: "),
        ("shown", {"strange": 1}, r"cannot be read \(\w+\.strange: "),
        ("shown", ..., r"lacks '\w+'"),
    ],
)
@pytest.mark.parametrize(
    ("whole", "own", "shown", "load"),
    [(DETECTOR, "detector", "shown", load_detector), (SEGMENTER, "segmenter", "inference", load_dense)],
)
def test_a_damaged_description_is_one_sentence(
    tmp_path: Path,
    whole: dict[str, Any],
    own: str,
    shown: str,
    load: Callable[[Path], object],
    key: str,
    value: object,
    message: str,
) -> None:
    name = {"own": own, "shown": shown}.get(key, key)
    about = {**whole, name: value}
    if value is ...:
        del about[name]
    file = write(tmp_path, about)
    with pytest.raises(CheckpointError, match=rf"^{file}: .*{message}"):
        load(file)


@pytest.mark.parametrize("load", [load_detector, load_dense])
@pytest.mark.parametrize("about", [[], 3, "detector segmenter"])
def test_a_description_that_is_none(tmp_path: Path, about: object, load: Callable[[Path], object]) -> None:
    with pytest.raises(CheckpointError, match="holds no (detector|segmenter)"):
        load(write(tmp_path, about))

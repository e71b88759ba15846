"""Files damaged at random: every reader gives either data or its own one-sentence error, never a traceback or a crash."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.errors import DataError
from vitp.images.decode import ImageError, read_rgb, read_size
from vitp.instruction.check import check_sources
from vitp.instruction.source import Source, SourceConfig

ROUNDS = 40  # damaged versions of each file


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """One of: bits flipped, a run overwritten, a piece cut out, the end cut off, a piece repeated."""
    found = bytearray(data)
    at, size = int(rng.integers(len(data))), int(rng.integers(1, max(2, len(data) // 8)))
    kind = int(rng.integers(5))
    if kind == 0:
        for place in rng.integers(len(data), size=int(rng.integers(1, 9))):
            found[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        found[at : at + size] = rng.integers(256, size=len(found[at : at + size]), dtype=np.uint8).tobytes()
    elif kind == 2:
        del found[at : at + size]
    elif kind == 3:
        del found[at:]
    else:
        found[at:at] = found[at : at + size]
    return bytes(found)


def picture(form: str, mode: str) -> bytes:
    rng = np.random.default_rng(3)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 4), dtype=np.uint8), "RGBA").resize((48, 36))
    stream = io.BytesIO()
    smooth.convert(mode).save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA"), ("PNG", "P"), ("WEBP", "RGB"), ("BMP", "RGB"),
     ("GIF", "P"), ("TIFF", "RGB"), ("PPM", "RGB"), ("JPEG2000", "RGB")],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # Pillow warns about what is then refused
def test_damaged_pictures(tmp_path: Path, form: str, mode: str) -> None:
    whole, path = picture(form, mode), tmp_path / "image"
    rng = np.random.default_rng(len(whole))
    refusals = []
    for _ in range(ROUNDS):
        path.write_bytes(damaged(whole, rng))
        try:
            pixels = read_rgb(path, max_pixels=1_000_000)
            assert pixels.ndim == 3
            assert pixels.shape[0] == 3
            assert tuple(pixels.shape[:0:-1]) == read_size(path)
        except ImageError as error:
            refusals.append(str(error))
    assert refusals
    assert [text for text in refusals if not text.startswith(f"{path}: ") or "\n" in text] == []


RECORDS = [
    {"id": i, "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nWo ist das Schiff \u00e4hnlich <ref>ship</ref>?"},
        {"from": "gpt", "value": f"<ref>ship</ref><box>[[{i}, 2, 300, 400]]</box>"}]}
    for i in range(12)
]  # fmt: skip


def as_lines() -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS)


def as_array() -> bytes:
    return json.dumps(RECORDS, indent=1).encode()


@pytest.mark.parametrize(
    ("name", "make"),
    [("a.jsonl", as_lines), ("a.json", as_array), ("a.jsonl.gz", lambda: gzip.compress(as_lines(), mtime=0))],
)
def test_damaged_annotations(tmp_path: Path, name: str, make: Callable[[], bytes]) -> None:
    """A damaged file is refused as a whole, or its damaged records are, and `vitp check` finds the same ones."""
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    whole, config = make(), SourceConfig(name="a", root=tmp_path, annotations=Path(name))
    rng = np.random.default_rng(len(whole))
    refusals, kept = [], 0
    for _ in range(ROUNDS):
        (tmp_path / name).write_bytes(damaged(whole, rng))
        try:
            source = Source(config)
        except DataError as error:
            refusals.append(str(error))
            continue
        bad = set()
        for index in range(len(source)):
            try:
                assert source.sample(index).turns
                kept += 1
            except DataError as error:
                bad.add(index)
                refusals.append(str(error))
        report = check_sources([source])
        assert report.counts.get(("error", "unexpected"), 0) == 0, report.lines()
        assert bad <= {index for _, index in report.bad}
    assert refusals
    assert [text for text in refusals if name not in text or "\n" in text] == []
    assert kept or name.endswith(".gz")

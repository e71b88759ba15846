"""Images that lie in shards and tables, and tables that are damaged or of other shapes."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.storedata import (
    IMAGE,
    TURNS,
    bad,
    good,
    opened,
    outcomes,
    png,
    record,
    refusal,
    saved_to_disk,
    turns,
    write_tar,
)
from vitp.images.decode import ImageError
from vitp.images.raster import RasterConfig
from vitp.images.read import ImageConfig, image_size, read_image
from vitp.instruction.check import CheckOptions, check_sources
from vitp.instruction.source import Source


def huge_header() -> bytes:
    """A PNG that announces 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    end = b"IEND"
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0) + end + struct.pack(">I", zlib.crc32(end))
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- images


def images_everywhere(root: Path, name: str, data: bytes) -> list[Source]:
    """One record with one image, given as bytes, in a shard and in a table."""
    write_tar(root / "i.tar", [(name, data), (f"{name.partition('.')[0]}.json", record("x"))])
    cell = pa.array([{"bytes": data, "path": name}], IMAGE)
    pq.write_table(pa.table({"image": cell, "conversations": pa.array([turns("x")], TURNS)}), root / "i.parquet")
    return [opened(root, "i.tar"), opened(root, "i.parquet")]


def test_bad_images_are_named_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "deep.png").touch()
    Image.fromarray(np.full((9, 9), 70, np.uint16)).save(tmp_path / "deep.png")
    cases = {
        "huge.png": (huge_header(), "image-too-large"),
        "cut.png": (png(60, 60)[:-30], "image-damaged"),
        "no.png": (b"no image at all", "image-unknown"),
        "none.png": (b"", "image-empty"),
        "deep.png": ((tmp_path / "deep.png").read_bytes(), "image-deep"),
        "bad.nii": (b"no volume", "image-unknown"),
        "bad.dcm": (b"no DICOM file", "image-unknown"),
    }
    for name, (data, code) in cases.items():
        shard, table = images_everywhere(tmp_path, name, data)
        for source, place in ((shard, f"i.tar:{name}"), (table, "i.parquet:row 0:image 0")):
            file = source.image_file(source.sample(0).images[0])
            with pytest.raises(ImageError) as caught:
                read_image(file, ImageConfig())
            assert caught.value.code == code, name
            assert caught.value.where == f"{tmp_path}/{place}"
            report = check_sources([source], CheckOptions(decode=True))
            assert [finding.code for finding in report.errors] == [code]


def test_rasters_and_volumes_in_shards_are_those_in_files(tmp_path: Path) -> None:
    values = np.arange(30, dtype=np.uint16).reshape(5, 6) * 900
    rasterio = pytest.importorskip("rasterio")
    nibabel = pytest.importorskip("nibabel")
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", width=6, height=5, count=1, dtype="uint16") as out:
        out.write(values, 1)
    nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)).to_filename(tmp_path / "b.nii.gz")
    config = ImageConfig(raster=RasterConfig())
    for name in ("a.tif", "b.nii.gz"):
        expected = read_image(tmp_path / name, config)
        for source in images_everywhere(tmp_path, name, (tmp_path / name).read_bytes()):
            file = source.image_file(source.sample(0).images[0])
            assert (read_image(file, config) == expected).all()
            assert image_size(file, config) == image_size(tmp_path / name, config)


# ------------------------------------------------------------------------------------------------------------- tables


def test_columns_are_asked_for_by_name(tmp_path: Path) -> None:
    texts = pa.array([turns("x")], TURNS)
    cases = {
        "none": (
            pa.table({"text": ["x"], "id": [1]}),
            "no column 'messages' or 'conversations' (its columns: text, id)",
        ),
        "both": (pa.table({"messages": texts, "conversations": texts}), "remove one"),
        "numbers": (
            pa.table({"conversations": texts, "image": [3]}),
            "a column 'image' of type int64, which is no image",
        ),
    }
    for name, (content, message) in cases.items():
        pq.write_table(content, tmp_path / f"{name}.parquet")
        assert message in refusal(tmp_path, f"{name}.parquet"), name
    saved_to_disk(tmp_path / "saved", cases["none"][0], 1)
    assert "no column 'messages'" in refusal(tmp_path / "saved")


def test_rows_of_other_shapes(tmp_path: Path) -> None:
    nothing = pa.array([None, turns("good")], TURNS)
    pq.write_table(pa.table({"conversations": nothing, "image": pa.array([None, None], IMAGE)}), tmp_path / "a.parquet")
    source = opened(tmp_path, "a.parquet")
    assert good(source) == ["good"]
    assert list(bad(source)) == ["a.parquet:row 0"]
    legacy = {"from": ["human", "gpt"], "value": ["What?", "columns"]}  # as older versions of `datasets` stored lists
    pq.write_table(pa.table({"conversations": [legacy], "system": ["Be brief."]}), tmp_path / "b.parquet")
    assert opened(tmp_path, "b.parquet").sample(0).turns[0].text == "Be brief."
    assert good(opened(tmp_path, "b.parquet")) == ["columns"]
    pq.write_table(pa.table({"conversations": ["[{]", json.dumps(turns("text"))]}), tmp_path / "c.parquet")
    assert good(opened(tmp_path, "c.parquet")) == ["text"]
    many = pa.array([[{"bytes": png(colour=5), "path": None}, {"bytes": None, "path": "p.png"}]], pa.list_(IMAGE))
    (tmp_path / "p.png").write_bytes(png(colour=6))
    asked = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "two"}]
    pq.write_table(pa.table({"images": many, "conversations": pa.array([asked], TURNS)}), tmp_path / "d.parquet")
    source = opened(tmp_path, "d.parquet")
    names = source.sample(0).images
    assert names == ("d.parquet:row 0:image 0", "p.png")
    assert [int(read_image(source.image_file(name), ImageConfig())[0, 0, 0]) for name in names] == [5, 6]
    pq.write_table(
        pa.table({"image": ["../p.png"], "conversations": pa.array([turns("x")], TURNS)}), tmp_path / "e.parquet"
    )
    source = opened(tmp_path, "e.parquet")
    with pytest.raises(ImageError, match="leads out of the source's root"):
        source.image_file(source.sample(0).images[0])


def test_of_damaged_tables_the_rest_is_used(tmp_path: Path) -> None:
    content = pa.table({"conversations": pa.array([turns(str(i)) for i in range(20)], TURNS)})
    pq.write_table(content, tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    assert "damaged or truncated" in refusal(tmp_path, "b.parquet")
    source = opened(tmp_path, "*.parquet")
    assert good(source) == [str(i) for i in range(20)]
    assert [(place, error.code) for place, error in bad(source).items()] == [("b.parquet:row 0", "file-damaged")]
    forged = bytearray(whole)
    forged[20:60] = bytes(40)  # data, not the footer: found when the row is read
    (tmp_path / "c.parquet").write_bytes(forged)
    found = outcomes(opened(tmp_path, "c.parquet"))
    assert all(isinstance(each, str) or each.code == "file-damaged" for each in found)
    saved_to_disk(tmp_path / "saved", content, 1)
    arrow = tmp_path / "saved" / "data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[: arrow.stat().st_size * 6 // 10])
    source = opened(tmp_path / "saved")
    kept = good(source)
    assert kept == [str(i) for i in range(len(kept))]
    assert 5 <= len(kept) <= 15
    assert list(bad(source)) == [f"data-00000-of-00001.arrow:row {len(kept)}"]


def test_splits_are_found_by_name(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        content = pa.table({"conversations": pa.array([turns(split)], TURNS)})
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(content, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert good(opened(tmp_path)) == ["train"]
    assert good(opened(tmp_path, split="validation")) == ["validation"]
    assert "has no files of split 'test'; its splits are train, validation" in refusal(tmp_path, split="test")
    assert "leave them out" in refusal(tmp_path, "data/train-00000-of-00001.parquet", split="validation")

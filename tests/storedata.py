"""The miniature data set in every kind of store, and what tests ask of a source."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.minidata import write_data
from vitp.errors import DataError
from vitp.instruction.records import RecordError
from vitp.instruction.source import Source, SourceConfig

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as `datasets` stores its feature Image
TURNS = pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))


def member(tar: tarfile.TarFile, name: str, data: bytes, **fields: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member(tar, name, data)
    return path


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


def shards(root: Path, records: list[dict[str, Any]], count: int = 2) -> None:
    """Every record under a key of its own, in `count` shards; images in front of their records, unnamed in them."""
    (root / "shards").mkdir()
    for shard in range(count):
        members: list[tuple[str, bytes]] = []
        for number in range(shard * len(records) // count, (shard + 1) * len(records) // count):
            record = dict(records[number])
            image = record.pop("image", None)
            if image is not None:
                members.append((f"a/{number:05}.png", (root / image).read_bytes()))
            members.append((f"a/{number:05}.json", json.dumps(record).encode()))
        write_tar(root / "shards" / f"mini-{shard:03}.tar", members)


def table(root: Path, records: list[dict[str, Any]]) -> pa.Table:
    """Records as `datasets` would hold them, images as bytes."""
    images = [{"bytes": (root / r["image"]).read_bytes(), "path": Path(r["image"]).name} if "image" in r else None
              for r in records]  # fmt: skip
    turns = pa.array([r["conversations"] for r in records], TURNS)
    return pa.table({"id": range(len(records)), "image": pa.array(images, IMAGE), "conversations": turns})


def saved_to_disk(folder: Path, content: pa.Table, files: int = 2) -> None:
    """As `Dataset.save_to_disk` does: Arrow streams, and a list of them."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        part = content.slice(
            number * len(content) // files, (number + 1) * len(content) // files - number * len(content) // files
        )
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
            writer.write_table(part, max_chunksize=5)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "data-00000-of-00009.arrow").write_bytes(b"left over from an earlier save")


def _hub(root: Path, content: pa.Table) -> None:
    for split, part in (("train", content), ("test", content.slice(0, 1))):
        (root / "hub" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(part, root / "hub" / "data" / f"{split}-00000-of-00001.parquet", row_group_size=4)


def write_stores(root: Path, change: Callable[[list[dict[str, Any]]], None] | None = None) -> dict[str, dict[str, Any]]:
    """Write the miniature data set in all stores; their names -> what tells a source where it is."""
    data = write_data(root, 8).read_bytes()
    records = [json.loads(line) for line in data.splitlines()]
    if change is not None:
        change(records)
        data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        (root / "train.jsonl").write_bytes(data)
    (root / "train.jsonl.gz").write_bytes(gzip.compress(data))
    (root / "train.jsonl.zst").write_bytes(zstd(data))
    (root / "array.json").write_text(json.dumps(records, indent=1))
    (root / "array.json.zst").write_bytes(zstd(json.dumps(records).encode()))
    shards(root, records)
    (root / "packed.tar.gz").write_bytes(gzip.compress((root / "shards" / "mini-000.tar").read_bytes()))
    content = table(root, records)
    pq.write_table(content, root / "rows.parquet", row_group_size=3)
    paths = pa.array([record.get("image") for record in records])
    texts = pa.array([json.dumps(record["conversations"]) for record in records])
    pq.write_table(pa.table({"image": paths, "conversations": texts}), root / "paths.parquet")
    saved_to_disk(root / "saved", content)
    saved_to_disk(root / "dictionary" / "train", content, 1)
    saved_to_disk(root / "dictionary" / "test", content.slice(0, 2), 1)
    _hub(root, content)
    here = {"root": root}
    return {
        "jsonl": {**here, "annotations": "train.jsonl"},
        "jsonl.gz": {**here, "annotations": "train.jsonl.gz"},
        "jsonl.zst": {**here, "annotations": "train.jsonl.zst"},
        "array": {**here, "annotations": "array.json"},
        "array.zst": {**here, "annotations": "array.json.zst"},
        "tar pattern": {**here, "annotations": "shards/mini-{000..001}.tar"},
        "tar glob": {**here, "annotations": "shards/*.tar"},
        "tar folder": {"root": root / "shards"},
        "tar packed": {**here, "annotations": "{packed.tar.gz,shards/mini-001.tar}"},
        "parquet": {**here, "annotations": "rows.parquet"},
        "parquet paths": {**here, "annotations": "paths.parquet"},
        "saved": {"root": root / "saved"},
        "saved dictionary": {**here, "annotations": "dictionary"},
        "hub": {"root": root / "hub"},
    }


# ------------------------------------------------------------------------------------------------- asking a source


def turns(text: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "What?"}, {"from": "gpt", "value": text}]


def record(text: str, **more: object) -> bytes:
    return json.dumps({**more, "conversations": turns(text)}).encode()


def opened(root: Path, annotations: str | None = None, **options: Any) -> Source:
    return Source(SourceConfig(name="s", root=root, annotations=annotations, **options))


def outcomes(source: Source) -> list[str | RecordError]:
    """Of each record its last answer, or why there is none."""
    found: list[str | RecordError] = []
    for index in range(len(source)):
        try:
            found.append(source.sample(index).turns[-1].text)
        except RecordError as error:
            found.append(error)
    assert all(isinstance(each, str) or ("\n" not in str(each) and "; " in str(each)) for each in found)
    return found


def good(source: Source) -> list[str]:
    return [each for each in outcomes(source) if isinstance(each, str)]


def bad(source: Source) -> dict[str, RecordError]:
    """Errors by place below the root."""
    root = f"{source.root}/"
    return {each.where.removeprefix(root): each for each in outcomes(source) if isinstance(each, RecordError)}


def refusal(root: Path, *args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(root, *args, **options)
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def png(width: int = 12, height: int = 10, colour: int = 90) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), colour, np.uint8)).save(out, "PNG")
    return out.getvalue()

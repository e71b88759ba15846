"""One data set in every store: the same samples, pixels, findings and training, whatever holds them."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file

from tests.minidata import write_recipe
from tests.storedata import write_stores
from vitp.commands.pretrain import pretrain
from vitp.images.read import image_size, read_image
from vitp.instruction import leakage, remote, table_files
from vitp.instruction.check import CheckOptions, check_sources
from vitp.instruction.leakage import find_overlap, source_images
from vitp.instruction.sample import Turn
from vitp.instruction.source import Source, SourceConfig
from vitp.train.checkpoint import list_checkpoints


def opened(place: dict[str, Any]) -> Source:
    return Source(SourceConfig(name="s", **place))


def content(source: Source) -> list[tuple[tuple[Turn, ...], list[torch.Tensor]]]:
    """All that training sees of a source."""
    found = []
    for index in range(len(source)):
        sample = source.sample(index)
        assert sample.where == source.where(index)
        files = [source.image_file(name) for name in sample.images]
        pixels = [read_image(file, source.config.images) for file in files]
        assert [image_size(file, source.config.images) for file in files] == [(p.shape[2], p.shape[1]) for p in pixels]
        found.append((sample.turns, pixels))
    return found


def same(first: Any, second: Any) -> bool:
    return len(first) == len(second) and all(
        a[0] == b[0] and len(a[1]) == len(b[1]) and all(map(torch.equal, a[1], b[1]))
        for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return write_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture
def memory(places: dict[str, dict[str, Any]]) -> Any:
    """The same files behind memory:// URLs."""
    root = places["jsonl"]["root"]
    system = fsspec.filesystem("memory")
    system.put(f"{root}/", "/mini/", recursive=True)
    yield {
        name: {**place, "root": f"memory://mini/{place['root'].relative_to(root).as_posix()}".rstrip("/.")}
        for name, place in places.items()
    }
    system.rm("/mini", recursive=True)


def test_samples_and_pixels_are_the_same(places: dict[str, dict[str, Any]]) -> None:
    expected = content(opened(places["jsonl"]))
    assert sum(len(pixels) for _, pixels in expected) == 8
    for name, place in places.items():
        source = opened(place)
        assert same(content(source), expected), name
        assert opened(place).fingerprint() == source.fingerprint(), name
        copy = pickle.loads(pickle.dumps(source))
        assert copy.fingerprint() == source.fingerprint(), name
        assert same(content(copy), expected), name


def test_urls_are_the_same(memory: dict[str, dict[str, Any]], places: dict[str, dict[str, Any]]) -> None:
    expected = content(opened(places["jsonl"]))
    for name, place in memory.items():
        source = opened(place)
        assert same(content(source), expected), name
        assert source.where(0).startswith("memory://mini/"), name
        assert source.fingerprint() == opened(places[name]).fingerprint(), name
    root = places["jsonl"]["root"]  # images here, annotations there
    assert same(content(opened({"root": root, "annotations": "memory://mini/train.jsonl.zst"})), expected)


def test_annotations_are_fetched_once(memory: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    system = fsspec.filesystem("memory")
    calls: list[str] = []
    fetch = type(system).get_file
    monkeypatch.setattr(
        type(system), "get_file", lambda self, path, *rest: calls.append(path) or fetch(self, path, *rest)
    )
    system.pipe("/mini/fresh.jsonl", system.cat("/mini/train.jsonl"))
    for _ in range(2):
        assert len(opened({**memory["jsonl"], "annotations": "fresh.jsonl"})) == 9
    assert calls == ["/mini/fresh.jsonl"]
    system.pipe("/mini/fresh.jsonl", system.cat("/mini/train.jsonl").splitlines()[0])
    assert len(opened({**memory["jsonl"], "annotations": "fresh.jsonl"})) == 1
    assert len(calls) == 2


def break_some(records: list[dict[str, Any]]) -> None:
    records[1]["conversations"][-1]["value"] = ""
    records[3]["conversations"][0]["value"] += "<image>"
    del records[4]["conversations"][-1]
    records[5]["conversations"][1]["value"] = "<box>[[1, 2]]</box>"


def test_findings_are_the_same(tmp_path: Path) -> None:
    everywhere = write_stores(tmp_path, break_some)
    reports = {name: check_sources([opened(place)], CheckOptions(decode=True)) for name, place in everywhere.items()}
    expected = reports["jsonl"]
    assert len(expected.bad) == 4
    for name, report in reports.items():
        assert (report.counts, report.sources, report.bad) == (expected.counts, expected.sources, expected.bad), name
        assert [f.found for f in report.findings] == [f.found for f in expected.findings], name
    places = {name: report.findings[0].where.removeprefix(f"{tmp_path}/") for name, report in reports.items()}
    assert places["jsonl.zst"] == "train.jsonl.zst:2"
    assert places["tar glob"] == "shards/mini-000.tar:a/00001.json"
    assert places["hub"] == "hub/data/train-00000-of-00001.parquet:row 1"


def _contents(source: Source, queue: Any) -> None:
    queue.put([(sample, [p.sum().item() for p in pixels]) for sample, pixels in content(source)])


def test_workers_read_what_the_parent_reads(places: dict[str, dict[str, Any]]) -> None:
    expected = [(turns, [p.sum().item() for p in pixels]) for turns, pixels in content(opened(places["jsonl"]))]
    context = multiprocessing.get_context("fork")
    for name in ("tar folder", "parquet", "saved"):
        source = opened(places[name])
        content(source)  # everything is open now
        queue = context.Queue()
        worker = context.Process(target=_contents, args=(source, queue))
        worker.start()
        assert queue.get(timeout=60) == expected, name
        worker.join()


def test_overlap_is_found_wherever_images_lie(
    places: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "_CHUNK", 3)  # several chunks, so that images go to worker processes
    root = places["jsonl"]["root"]
    shutil.copy(root / "images" / "003.png", tmp_path / "test.png")
    for name in ("jsonl", "tar glob", "saved"):
        found = source_images([opened(places[name]), opened(places[name])])
        assert len(found) == 8, name  # each once
        report = find_overlap(found, [tmp_path / "test.png"], workers=2)
        assert str(found[3]) in {overlap.image for overlap in report.overlaps}, name
        assert not report.unreadable


def test_training_from_shards_is_training_from_lines(places: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    root = places["jsonl"]["root"]
    weights = {}
    for name, file in (("lines", "train.jsonl"), ("shards", "shards/*.tar"), ("table", "rows.parquet")):
        (tmp_path / name).mkdir()
        recipe = write_recipe(tmp_path / name, root, tmp_path / name / "out", steps=2, warm_start={"steps": 0})
        document = json.loads(recipe.read_text())
        document["data"]["sources"][0]["annotations"] = file
        recipe.write_text(json.dumps(document))
        pretrain(recipe)
        weights[name] = load_file(list_checkpoints(tmp_path / name / "out")[-1] / "model.safetensors")
    for name in ("shards", "table"):
        assert weights[name].keys() == weights["lines"].keys()
        for key, value in weights["lines"].items():
            assert torch.equal(weights[name][key], value), (name, key)


def test_large_row_groups_are_read_through_the_cache(
    places: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = opened(places["parquet"])
    monkeypatch.setattr(table_files, "MAX_GROUP_BYTES", 100)
    source = opened(places["parquet"])
    assert same(content(source), content(expected))
    assert source.fingerprint() != ""
    assert source.where(8).endswith("rows.parquet:row 8")


def test_the_configuration_takes_urls_and_paths() -> None:
    config = SourceConfig(name="s", root="s3://bucket/data", annotations="shards/{000..999}.tar")
    assert (config.root, config.annotations) == ("s3://bucket/data", Path("shards/{000..999}.tar"))
    assert SourceConfig(name="s", root="/data").root == Path("/data")
    assert remote.joined("s3://b/d/", "a.jsonl") == "s3://b/d/a.jsonl"

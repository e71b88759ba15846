"""URLs that do not lead anywhere: one sentence each, with the package to install where that is what is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.minidata import write_data
from vitp.errors import DataError, MissingExtraError
from vitp.images.decode import ImageError
from vitp.images.read import ImageConfig, read_image
from vitp.instruction.check import CheckOptions, check_sources
from vitp.instruction.remote import RemoteImage, below
from vitp.instruction.source import Source, SourceConfig


def opened(root: str | Path, annotations: str | None = None, **options: Any) -> Source:
    return Source(SourceConfig(name="s", root=root, annotations=annotations, **options))


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[str]:
    write_data(tmp_path / "mini", 4)
    system = fsspec.filesystem("memory")
    system.put(f"{tmp_path}/mini/", "/hostile/", recursive=True)
    yield "memory://hostile"
    system.rm("/hostile", recursive=True)


def refusal(*args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_reached(mini: str) -> None:
    assert "has the unknown protocol nosuch://; known are s3://" in refusal("nosuch://bucket", "a.jsonl")
    assert refusal(mini, "missing.jsonl").startswith("memory://hostile/missing.jsonl: does not exist; correct the URL")
    assert "does not exist" in refusal("memory://nothing")
    assert "is a folder without shards or tables" in refusal(mini)
    assert "is a folder without shards or tables" in refusal(mini, "*.tar")
    assert "read from folders only; copy it first" in refusal(mini, format="rsicd")
    assert "leave them out" in refusal(mini, "train.jsonl", split="test")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # not installed, wherever the tests run
    for place in (
        ("s3://bucket/data", "a.jsonl"),
        ("s3://bucket/data", "x/{0..3}.tar"),
        ("/tmp", "s3://bucket/a.jsonl"),
    ):
        with pytest.raises(MissingExtraError, match="needs the package s3fs; install it with: pip install s3fs"):
            opened(*place)
    with pytest.raises(MissingExtraError, match="pip install s3fs"):
        read_image(RemoteImage("s3://bucket/a.png"), ImageConfig())


def test_servers_that_fail(mini: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Any:
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    class StrangeError(Exception):
        """As the libraries of some servers raise: no OSError."""

    cases = [
        (PermissionError(13, "Forbidden"), "may not be read; log in"),
        (ConnectionResetError(104, "Connection reset by peer"), "cannot be reached (ConnectionResetError: "),
        (StrangeError("quota\nexceeded"), "cannot be reached (StrangeError: quota exceeded); check the URL"),
        (OSError(28, "No space left on device"), ""),
    ]
    source = opened(mini, "train.jsonl")
    name = source.sample(0).images[0]
    for error, message in cases[:3]:
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "get_file", failing(error))
            fsspec.filesystem("memory").pipe("/hostile/new.jsonl", str(error).encode())  # not in the cache
            assert message in refusal(mini, "new.jsonl")
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "cat_file", failing(error))
            with pytest.raises(ImageError) as caught:
                read_image(source.image_file(name), ImageConfig())
            assert message in str(caught.value)
            assert caught.value.where == "memory://hostile/images/000.png"
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "get_file", failing(cases[3][0]))
        fsspec.filesystem("memory").pipe("/hostile/new.jsonl", b"another")
        with pytest.raises(ValueError, match="VITP_CACHE"):
            opened(mini, "new.jsonl")


def test_images_are_missing_one_by_one_and_fetched_once(mini: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.filesystem("memory").rm("/hostile/images/002.png")
    source = opened(mini, "train.jsonl")
    report = check_sources([source], CheckOptions(decode=True))
    assert [(f.code, f.where) for f in report.errors] == [("image-missing", "memory://hostile/train.jsonl:3")]
    assert report.bad == {(0, 2)}
    calls: list[str] = []
    fetch = MemoryFileSystem.cat_file
    monkeypatch.setattr(
        MemoryFileSystem, "cat_file", lambda self, path, *rest: calls.append(path) or fetch(self, path, *rest)
    )
    read_image(source.image_file("images/000.png"), ImageConfig())
    assert calls == ["/hostile/images/000.png"]


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "a/../../b.png", "..", ".", "s3://other/a.png", "a\0.png"])
def test_images_stay_below_the_root(name: str) -> None:
    with pytest.raises(ImageError, match="leads out of the source's root"):
        below("s3://bucket/data/", name)
    assert below("s3://bucket/data/", "a/../b//c.png") == "s3://bucket/data/b/c.png"
    assert below("s3://bucket/data", "s3://bucket/data/c.png") == "s3://bucket/data/c.png"

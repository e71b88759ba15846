"""Sources: the right record under every number, nothing read outside the root, and mistakes with file and line."""

import gzip
import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vitp.errors import DataError
from vitp.instruction import stores, text_store, unpack
from vitp.instruction.records import RecordError
from vitp.instruction.source import Source, SourceConfig

DATA = Path(__file__).parents[2] / "../shared/data"


def record(text: str, image: str | None = None) -> dict[str, Any]:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": text}]
    return {"conversations": turns} if image is None else {"image": image, "conversations": turns}


def line(text: str) -> bytes:
    return json.dumps(record(text), ensure_ascii=False).encode()


def source(root: Path, annotations: str | Path | None = None, **options: Any) -> Source:
    return Source(SourceConfig(name="s", root=root, annotations=annotations, **options))


def written(root: Path, data: bytes, name: str = "data.jsonl") -> Source:
    (root / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return source(root, name)


def answers(found: Source) -> list[str]:
    return [found.sample(i).turns[-1].text for i in range(len(found))]


def refusal(root: Path, *args: Any, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        source(root, *args, **options)
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


# --------------------------------------------------------------------------------------------------- text files


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.json"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [True, False])
def test_lines(tmp_path: Path, name: str, newline: bytes, mark: bytes, end: bool) -> None:
    lines = [b"", line("one"), b"  \t", line("zwölf 船"), b"", b"", line("three"), b"   "]
    data = mark + newline.join(lines) + (newline if end else b"")
    found = written(tmp_path, data, name)
    assert answers(found) == ["one", "zwölf 船", "three"]
    assert [found.sample(i).where for i in range(3)] == [f"{tmp_path / name}:{n}" for n in (2, 4, 7)]
    assert [found.where(i) for i in range(3)] == [f"{tmp_path / name}:{n}" for n in (2, 4, 7)]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            found.sample(index)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data.json.gz"])
def test_arrays(tmp_path: Path, name: str) -> None:
    values = [record("one"), record("zwölf 船"), record("three")]
    spread = written(tmp_path, json.dumps(values, indent=1, ensure_ascii=False).encode(), name)
    assert answers(spread) == ["one", "zwölf 船", "three"]
    text = json.dumps(values, indent=1, ensure_ascii=False).splitlines()
    places = [number for number, content in enumerate(text, 1) if content == " {"]
    assert [spread.where(i) for i in range(3)] == [f"{tmp_path / name}:{n}" for n in places]
    dense = written(tmp_path, json.dumps(values).encode(), name)
    assert answers(dense) == ["one", "zwölf 船", "three"]
    assert dense.where(1) == f"{tmp_path / name}:record 2"  # all in one line


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(texts, st.just(None)), max_size=12), st.integers(1, 40), st.booleans())
def test_any_lines_at_any_chunk_size(
    tmp_path_factory: pytest.TempPathFactory, items: list[str | None], size: int, end: bool
) -> None:
    """Lines and blanks fall on chunk boundaries in every way."""
    kept = [(number, item) for number, item in enumerate(items, 1) if item is not None and "<" not in item]
    data = b"\n".join(b"" if item is None or "<" in item else line(item) for item in items) + (b"\n" if end else b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_store, "_CHUNK", size)
        root = tmp_path_factory.mktemp("s")
        if not kept:
            (root / "data.jsonl").write_bytes(data)
            assert "holds no record" in refusal(root, "data.jsonl")
            return
        found = written(root, data)
        assert answers(found) == [item for _, item in kept]
        assert [found.where(i).rpartition(":")[2] for i in range(len(found))] == [str(n) for n, _ in kept]


def test_bad_lines_cost_one_sample_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_RECORD_BYTES", 500)
    bad = [
        (b'{"conversations": [', "line-syntax"),
        (b"\0\0\0", "line-encoding"),
        (line("x") + b"\0", "line-encoding"),
        (b'{"image": "\xe9.jpg"}', "line-encoding"),
        (b"[" * 450, "line-syntax"),
        (line("x" * 500), "line-too-long"),
        (b" " * 501, "line-too-long"),
        (b"[1]", "record-type"),
        (b"{}", "record-layout"),
    ]
    data = b"\n".join(part for content, _ in bad for part in (line("good"), content)) + b"\n" + line("last")[:-9]
    found = written(tmp_path, data)
    assert len(found) == 2 * len(bad) + 1
    for index, (content, code) in enumerate(bad):
        assert found.sample(2 * index).turns[-1].text == "good"
        with pytest.raises(RecordError) as caught:
            found.sample(2 * index + 1)
        assert caught.value.code == code, content
        assert caught.value.where == f"{tmp_path / 'data.jsonl'}:{2 * index + 2}"
    with pytest.raises(RecordError, match="the file is truncated") as caught:
        found.sample(len(found) - 1)
    assert caught.value.where.endswith(f":{2 * len(bad) + 1}")


def test_files_that_are_wrong_as_a_whole(tmp_path: Path) -> None:
    whole = {
        "empty.jsonl": (b"", "holds no record"),
        "blank.jsonl": (b"\n \n", "holds no record"),
        "none.json": (b"[ ]", "holds no record"),
        "broken.json": (b'[{"a": 1},\n{]', "broken.json:2: is no JSON"),
        "object.json": (json.dumps({"data": [record("x")]}, indent=1).encode(), "one JSON object"),
        "utf16.jsonl": (line("x").decode().encode("utf-16"), "UTF-16"),
        "packed.jsonl.gz": (b"no gzip", "damaged or truncated"),
        "cut.json.gz": (gzip.compress(b"[" + line("x") * 50)[:-12], "damaged or truncated"),
        "table.csv": (b"a,b", "is none of .jsonl"),
    }
    for name, (data, message) in whole.items():
        (tmp_path / name).write_bytes(data)
        found = refusal(tmp_path, name)
        assert message in found, name
        assert str(tmp_path / name) in found


def test_a_packed_file_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "MAX_UNPACKED_BYTES", 1 << 20)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(bytes(2 << 20)))
    assert "unpacked" in refusal(tmp_path, "bomb.jsonl.gz")


# ------------------------------------------------------------------------------------------------ missing and where


def test_missing_places_name_what_is_near(tmp_path: Path) -> None:
    (tmp_path / "captions_train.jsonl").write_bytes(line("x"))
    assert "did you mean captions_train.jsonl" in refusal(tmp_path, "caption_train.jsonl")
    assert f"did you mean {tmp_path.name}" in refusal(tmp_path.with_name(tmp_path.name + "x"))
    assert "correct the path" in refusal(tmp_path / "captions_train.jsonl")  # a file as root
    assert "captions_train.jsonl" in refusal(tmp_path)  # no annotations given: what there is
    assert "captions_train.jsonl" in refusal(tmp_path, format="conversations")
    (tmp_path / "folder").mkdir()
    assert "as 'annotations'" in refusal(tmp_path, "folder")


def test_annotations_may_lie_anywhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "data.jsonl").write_bytes(line("x"))
    assert answers(source(tmp_path / "images", "../data.jsonl")) == ["x"]
    assert answers(source(tmp_path / "images", tmp_path / "data.jsonl")) == ["x"]


def test_options_of_native_data_are_refused_for_plain_records(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_bytes(line("x"))
    assert "leave them out" in refusal(tmp_path, "data.jsonl", split="test")
    assert "leave them out" in refusal(tmp_path, "data.jsonl", turns=2)


def test_the_configuration_is_strict() -> None:
    good = {"name": "a", "root": "."}
    assert SourceConfig.model_validate(good).format == "auto"
    for wrong in ({"weight": 0}, {"weight": float("inf")}, {"max_tiles": 0}, {"turns": 0}, {"format": "coco"},
                  {"augment": {"crop_min_scale": 0}}, {"name": ""}, {"wieght": 1}):  # fmt: skip
        with pytest.raises(ValidationError):
            SourceConfig.model_validate({**good, **wrong})


def test_images_must_stay_in_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    (tmp_path / "secret.jpg").touch()
    (root / "in" / "a.jpg").touch()
    (root / "link.jpg").symlink_to(root / "in" / "a.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "outside").symlink_to(tmp_path)
    (root / "data.jsonl").write_bytes(line("x"))
    (tmp_path / "alias").symlink_to(root)
    for base in (root, tmp_path / "alias"):
        found = source(base, "data.jsonl")
        target = str(root / "in" / "a.jpg")
        for name in ("in/a.jpg", "in/../in/./a.jpg", target, "link.jpg", "outside/root/in/a.jpg", "in/..//in/a.jpg"):
            assert found.image_path(name) == (root / "in" / "a.jpg").resolve(), name
        assert found.image_path("not/there.jpg") == root.resolve() / "not" / "there.jpg"
        relative = (
            "../secret.jpg",
            "in/../../secret.jpg",
            "out.jpg",
            "outside/secret.jpg",
            "../root2/a.jpg",
            "..",
            "outside",
        )
        for name in (*relative, str(tmp_path / "secret.jpg"), "/etc/passwd"):
            with pytest.raises(DataError, match="leads out of the source's root"):
                found.image_path(name)
        with pytest.raises(DataError, match="no file can have"):
            found.image_path("a\0/b.jpg")


# ------------------------------------------------------------------------------------------------ processes, identity


def _last(found: Source, queue: Any) -> None:
    queue.put(answers(found)[-1])


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.jsonl.gz"])
def test_sources_cross_process_boundaries(tmp_path: Path, name: str) -> None:
    lines = [line(str(i)) for i in range(50)]
    found = written(tmp_path, b"[" + b",\n".join(lines) + b"]" if name == "data.json" else b"\n".join(lines), name)
    assert answers(found)[:2] == ["0", "1"]  # the file is open now
    assert answers(pickle.loads(pickle.dumps(found))) == answers(found)
    assert len(pickle.dumps(found)) < 10_000  # places, not texts
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_last, args=(found, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=20), queue.get(timeout=20)] == ["49", "49"]
    for worker in workers:
        worker.join()
    assert answers(found)[-1] == "49"


def test_a_file_that_changed_is_not_read_on(tmp_path: Path) -> None:
    for name in ("data.jsonl", "data.jsonl.gz"):
        copy = pickle.dumps(written(tmp_path, line("one") + b"\n" + line("two"), name))
        (tmp_path / name).write_bytes(b"other")
        with pytest.raises(DataError, match="changed while it was in use"):
            pickle.loads(copy).sample(0)


def test_open_files_are_closed_with_their_source(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else pytest.skip("no /proc")
    for _ in range(20):
        answers(written(tmp_path, line("one")))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_the_fingerprint_is_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = written(tmp_path / "a", line("one"))
    same = written(tmp_path / "b", line("one"), "other.jsonl")
    assert first.fingerprint() == same.fingerprint() == pickle.loads(pickle.dumps(first)).fingerprint()
    assert written(tmp_path / "b", line("two")).fingerprint() != first.fingerprint()
    assert written(tmp_path / "b", b"\n" + line("one")).fingerprint() != first.fingerprint()


# ------------------------------------------------------------------------------------------------------- native data


def native_folder(root: Path) -> Path:
    images = [{"filename": f"{i}.jpg", "split": ("train", "test")[i % 2], "class": "port", "captions": [f"a ship {i}"],
               "questions": [["theme?", "port"]]} for i in range(6)]  # fmt: skip
    (root / "images").mkdir()
    (root / "captions.json").write_text(json.dumps({"images": images}))
    return root


def test_native_data_is_found_by_itself(tmp_path: Path) -> None:
    root = native_folder(tmp_path)
    for found in (source(root), source(root, "captions.json"), source(root, format="rsicd", turns=3)):
        assert len(found) == 3
        assert found.sample(0).images == ("images/0.jpg",)
        assert "captions.json" in found.where(0)
        copy = pickle.loads(pickle.dumps(found))
        assert [copy.sample(i) for i in range(3)] == [found.sample(i) for i in range(3)]
        assert copy.fingerprint() == found.fingerprint()
    prints = {source(root, **o).fingerprint() for o in ({}, {"split": "test"}, {"turns": 1}, {"split": "all"})}
    assert len(prints) == 4
    (root / "captions.json").write_bytes(b"[" + line("records under a native name") + b"]")
    assert answers(source(root, "captions.json")) == ["records under a native name"]


@pytest.mark.parametrize(
    ("folder", "annotations", "samples"),
    [("qwen_vl", "single_images.json", 1), ("llamafactory", "mllm_demo.json", 6)],
)
def test_real_conversations(folder: str, annotations: str, samples: int) -> None:
    root = DATA / "instruct_samples" / folder
    if not root.is_dir():
        pytest.skip(f"no real data instruct_samples/{folder}")
    found = source(root, annotations)
    assert len(found) == samples
    for index in range(samples):
        sample = found.sample(index)
        assert sample.images
        assert all(found.image_path(name).is_file() for name in sample.images)

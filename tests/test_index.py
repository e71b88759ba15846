"""The index says before anything is decoded what training will find, survives kills and damage, and is never half-written."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vitp
from tests.minidata import write_data, write_recipe
from vitp.cli import app
from vitp.commands.pretrain_recipe import PretrainConfig, fingerprint
from vitp.config import load
from vitp.errors import DataError, OutputError
from vitp.instruction import index_build, index_file, measure
from vitp.instruction.chat import ChatFormat
from vitp.instruction.index import Index, IndexConfig, SizeRules, open_index, open_source
from vitp.instruction.index_build import build_index
from vitp.instruction.index_file import Flag, IndexDamagedError, IndexFile
from vitp.instruction.pack import StepBuilder
from vitp.instruction.plan import PlanConfig, plan_step
from vitp.instruction.source import AugmentConfig, Source, SourceConfig
from vitp.instruction.step_sizes import StepSizer
from vitp.instruction.tiling import TilingConfig
from vitp.vlm.token_drop import TokenDropConfig
from vitp.vlm.tokenizer import build_tokenizer

TILE, PER_TILE = 32, 4
SIZES = [(32, 32), (100, 40), (40, 130), (64, 64), (200, 30)]
CORPUS = ["How many ships are there in the harbour? Two ships. It is a long road."] * 20


def record(i: int, draw: np.random.Generator) -> dict[str, Any]:
    """A varied, usable record: none to three images, one to three pairs of turns, sometimes a system turn or boxes."""
    images = [f"{k}.png" for k in draw.integers(len(SIZES), size=draw.integers(4))]
    turns = [{"role": "system", "content": "Be  brief.\n"}] if i % 5 == 0 else []
    for pair in range(1 + i % 3):
        marks = "<image>\n" * len(images) if pair == 0 else ""
        words = " ".join(draw.choice(["ships", "harbour?", "Two", "naïve", "12", "\n- a", "  x"], draw.integers(1, 12)))
        answer = "<ref>ship</ref><box>[[1, 2, 30, 40]]</box>" if i % 7 == 0 else words
        turns += [{"role": "user", "content": marks + words}, {"role": "assistant", "content": answer}]
    return {"images": images, "messages": turns}


def pictures(root: Path) -> None:
    for k, (width, height) in enumerate(SIZES):
        Image.fromarray(np.full((height, width, 3), 10 * k, np.uint8)).save(root / f"{k}.png")


def write_lines(root: Path, count: int = 40, extra: dict[int, bytes] | None = None) -> Path:
    """Records, of which `extra` replaces some lines."""
    draw = np.random.default_rng(0)
    lines = [json.dumps(record(i, draw)).encode() for i in range(count)]
    for at, line in (extra or {}).items():
        lines[at] = line
    (root / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return root / "a.jsonl"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    pictures(folder)
    write_lines(folder)
    return folder


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(build_tokenizer(CORPUS, 400))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_build, "CHUNK_ROWS", 8)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First rows of the chunks that were measured in this process."""
    rows: list[int] = []
    table = measure.Measurer.table

    def counted(self: measure.Measurer, chunk: range) -> Any:
        rows.append(chunk.start)
        return table(self, chunk)

    monkeypatch.setattr(measure.Measurer, "table", counted)
    return rows


def rules_of(chat: ChatFormat, max_length: int = 4096, **tiling: Any) -> SizeRules:
    return SizeRules(chat, TilingConfig(**tiling), TILE, PER_TILE, max_length)


def config_of(root: Path, **options: Any) -> SourceConfig:
    return SourceConfig(name="s", root=root, annotations=Path("a.jsonl"), **options)


def kept(root: Path, workers: int = 1) -> IndexConfig:
    return IndexConfig(folder=root.parent / "cache", workers=workers)


def columns(index: Index) -> dict[str, list[Any]]:
    return {name: index.file.batch.column(name).to_pylist() for name in index.file.batch.schema.names}


def builder(source: Source, rules: SizeRules, vrl: TokenDropConfig, batch: int = 16) -> StepBuilder:
    plan = PlanConfig(max_tokens_per_pack=1 << 20, max_tiles_per_pack=1 << 20)
    return StepBuilder(
        [source], rules.chat, seed=3, batch_size=batch, tile_size=TILE, tokens_per_tile=PER_TILE, depth_modules=1,
        tiling=rules.tiling, vrl=vrl, weighting="sample", max_length=rules.max_length, plan=plan,
        text_steps=1, text_batch_size=batch,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ what training will find


@pytest.mark.parametrize("max_length", [4096, 90])
@pytest.mark.parametrize("max_tiles", [None, 3])
def test_sizes_are_those_of_samples_really_laid_out(
    root: Path, chat: ChatFormat, max_length: int, max_tiles: int | None
) -> None:
    gone = [{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": "b"}]
    bad = {3: b"{", 9: json.dumps({"images": ["gone.png"], "messages": gone}).encode()}
    write_lines(root, 60, bad)
    source, rules = Source(config_of(root, max_tiles=max_tiles)), rules_of(chat, max_length)
    index = build_index(source, rules, kept(root))
    for ratio in (0.0, 0.75):
        vrl = TokenDropConfig(preset="custom", drop_ratio=ratio)
        steps, sizes = builder(source, rules, vrl), index.sizes(range(len(index)))
        tokens, fates = sizes.tokens(vrl), set()
        for i in range(len(source)):
            try:
                laid = steps.sample(source, i, 5, 0, text_only=False)
            except DataError as error:
                fates.add("unusable")
                problem, reason = index.problem(i), error.reason
                laid = None
            if laid is None:
                assert problem is not None
                assert problem.message in reason or ("gone.png" in problem.message and "gone.png" in reason)
                continue
            assert index.problem(i) is None
            expected = (len(laid.tiles), len(laid.ids), len(laid.targets), laid.visual, laid.truncated)
            found = (sizes.tiles[i], tokens[i], sizes.supervised[i], sizes.visual[i], sizes.flags[i] & Flag.TRUNCATED)
            assert tuple(map(int, found)) == tuple(map(int, (*expected[:4], 2 * expected[4])))
            if not laid.truncated:
                encoded = chat.encode(source.sample(i).turns, [0] * len(source.sample(i).images))
                assert (index.text_tokens[i], index.supervised_tokens[i]) == (len(encoded.ids), encoded.supervised)
            fates.add("truncated" if laid.truncated else "whole")
        assert fates == ({"whole", "unusable"} if max_length > 90 else {"whole", "truncated", "unusable"})
    assert [(x.path, x.width, x.height) for x in index.images(9)] == [("gone.png", 0, 0)]


@pytest.mark.parametrize("preset", ["paper", "released", "none"])
def test_a_step_is_known_before_it_is_read(root: Path, chat: ChatFormat, preset: Any) -> None:
    """Tiles after crops and turns, tokens after a drop that not every sample takes, replacements of unusable samples."""
    draw = np.random.default_rng(1)
    lines = [json.dumps(record(7 * k + 1, draw)) if k % 6 else "{" for k in range(30)]  # no boxes: no text is rewritten
    (root / "a.jsonl").write_text("\n".join(lines) + "\n")
    augment = AugmentConfig(flip=True, rot90=True, crop_min_scale=0.3)
    source, rules, vrl = Source(config_of(root, augment=augment)), rules_of(chat, 500), TokenDropConfig(preset=preset)
    index = build_index(source, rules, kept(root))
    steps = builder(source, rules, vrl)
    sizer = StepSizer([index], [source], steps.mixture, 3, vrl, rules.tiling, TILE)
    for step in range(1, 5):
        positions = range((step - 1) * 16, step * 16)
        places = sizer.places(positions)
        sizes = sizer.sizes(step, places)
        batch = steps.step_batch(step)
        assert [f"s[{place.index}]" for place in places.values()] == batch.samples
        assert sum(size.tiles for size in sizes.values()) == batch.counts["tiles"]
        assert sum(size.tokens for size in sizes.values()) == batch.counts["lm_tokens"]
        assert sum(size.supervised for size in sizes.values()) == batch.counts["supervised_tokens"]
        assert all(size.where == source.where(places[p].index) for p, size in sizes.items())
        plan = plan_step(sizes, PlanConfig(), 2)
        assert sorted(p for rank in plan.ranks for pack in rank for p in pack) == list(positions)
    places = sizer.places(range(16))
    upper = sizer.sizes(0, places, text_only=True)
    text = steps.step_batch(0).counts
    assert text["lm_tokens"] <= sum(size.tokens for size in upper.values()) <= 1.2 * text["lm_tokens"]
    assert sum(size.tiles for size in upper.values()) == 0


def test_a_native_data_set_is_indexed_by_its_sizes(tmp_path: Path, chat: ChatFormat) -> None:
    (tmp_path / "images").mkdir()
    pictures(tmp_path / "images")
    images = [
        {"filename": f"{i}.png", "split": "train", "class": "port", "captions": [f"a ship {i}"]} for i in range(5)
    ]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images}))
    config = SourceConfig(name="n", root=tmp_path, annotations=Path("captions.json"), turns=1)
    rules, place = rules_of(chat), IndexConfig(folder=tmp_path / "cache", workers=1)
    index = build_index(open_source(config, place), rules, place)
    assert index.file.places is None
    assert "start" not in columns(index)
    assert [(x.width, x.height) for i in range(5) for x in index.images(i)] == SIZES
    assert open_index(open_source(config, place), rules, place) is not None


# -------------------------------------------------------------------------------------------------- opened by its index


def test_a_source_opened_by_its_index_is_the_same_source(root: Path, chat: ChatFormat) -> None:
    write_lines(root, 3000)
    scanned, rules = Source(config_of(root)), rules_of(chat)
    build_index(scanned, rules, kept(root, workers=2))
    opened = open_source(config_of(root), kept(root))
    assert opened.places is not None
    assert opened.places.index is not None  # its places lie in the index, not in memory
    for copy in (opened, pickle.loads(pickle.dumps(opened))):
        assert copy.fingerprint() == scanned.fingerprint()
        assert [copy.sample(i) for i in (0, 7, 2999)] == [scanned.sample(i) for i in (0, 7, 2999)]
    assert len(pickle.dumps(opened)) < 3000 < len(pickle.dumps(scanned))
    index = build_index(opened, rules, kept(root))
    assert len(pickle.dumps(index)) < 1000
    assert columns(pickle.loads(pickle.dumps(index))) == columns(index)


def test_a_changed_file_is_scanned_again(root: Path, chat: ChatFormat) -> None:
    build_index(Source(config_of(root)), rules_of(chat), kept(root))
    write_lines(root, 12)
    assert len(open_source(config_of(root), kept(root))) == 12


def test_reading_an_index_that_was_replaced_by_another_is_refused(root: Path, chat: ChatFormat) -> None:
    copy = pickle.dumps(build_index(Source(config_of(root)), rules_of(chat), kept(root)))
    write_lines(root, 12)
    build_index(Source(config_of(root)), rules_of(chat), kept(root))
    with pytest.raises(DataError, match="changed while it was in use"):
        pickle.loads(copy)


# --------------------------------------------------------------------------------------------------------- staleness


def test_touching_a_file_costs_nothing(root: Path, chat: ChatFormat, measured: list[int]) -> None:
    """Content decides, not times: what was copied or checked out again is not measured again."""
    rules = rules_of(chat)
    first = build_index(Source(config_of(root)), rules, kept(root))
    measured.clear()
    os.utime(root / "a.jsonl", ns=(1, 1))
    second = build_index(open_source(config_of(root), kept(root)), rules, kept(root))
    assert measured == []
    assert columns(first) == columns(second)
    opened = open_source(config_of(root), kept(root))  # the new time is remembered
    assert opened.places is not None
    assert opened.places.index is not None


def test_other_rules_make_another_index_and_leave_this_one(
    root: Path, chat: ChatFormat, measured: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    framed = build_tokenizer(CORPUS, 400)
    framed.chat_template = framed.chat_template.replace("<|im_end|>\n", "<|im_end|>\n\n")
    other = {
        "tokenizer": rules_of(ChatFormat(build_tokenizer(CORPUS, 300))),
        "template": rules_of(ChatFormat(framed)),
        "tiling": rules_of(chat, max_tiles=2),
        "max_length": rules_of(chat, 60),
        "tile_size": SizeRules(chat, TilingConfig(), 16, PER_TILE, 4096),
        "tokens_per_tile": SizeRules(chat, TilingConfig(), TILE, 9, 4096),
    }
    source = Source(config_of(root))
    first = build_index(source, rules_of(chat), kept(root))
    before = columns(first)
    headers = []
    monkeypatch.setattr(measure, "image_size", lambda *_: headers.append(1))
    for name, rules in other.items():
        assert open_index(source, rules, kept(root)) is None, name
        index = build_index(source, rules, kept(root))
        assert index.path != first.path
        sizes, old = index.sizes(range(40)), first.sizes(range(40))
        assert any(not np.array_equal(getattr(sizes, k), getattr(old, k)) for k in ("tiles", "text", "visual")), name
    assert headers == []  # image sizes are taken from the earlier index
    measured.clear()
    assert columns(build_index(source, rules_of(chat), kept(root))) == before
    assert measured == []


def test_only_chunks_whose_records_changed_are_measured(
    root: Path, chat: ChatFormat, measured: list[int], small_chunks: None
) -> None:
    write_lines(root, 40)
    build_index(Source(config_of(root)), rules_of(chat), kept(root))
    assert measured == [0, 8, 16, 24, 32]
    measured.clear()
    write_lines(root, 50, {17: b"{"})  # one line replaced, ten appended
    index = build_index(Source(config_of(root)), rules_of(chat), kept(root))
    assert measured == [16, 40, 48]
    fresh = build_index(Source(config_of(root)), rules_of(chat), kept(root), rebuild=True)
    assert columns(index) == columns(fresh)
    assert index.unusable.tolist() == [17]


def test_mended_images_are_noticed_and_replaced_ones_on_demand(
    root: Path, chat: ChatFormat, measured: list[int], small_chunks: None
) -> None:
    line = json.dumps(record(1, np.random.default_rng(0)) | {"images": ["late.png"]}).replace("<image>\\n", "").encode()
    write_lines(root, 40, {20: line})
    rules = rules_of(chat)
    assert build_index(Source(config_of(root)), rules, kept(root)).unusable.tolist() == [20]
    measured.clear()
    assert build_index(Source(config_of(root)), rules, kept(root)).unusable.tolist() == [20]
    assert measured == []
    Image.fromarray(np.zeros((64, 32, 3), np.uint8)).save(root / "late.png")
    said: list[str] = []
    index = build_index(Source(config_of(root)), rules, kept(root), say=said.append)
    assert measured == [16]
    assert index.usable(20)
    assert index.images(20)[0].height == 64
    assert "images of source 's' changed" in said[0]
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(root / "late.png")
    assert build_index(Source(config_of(root)), rules, kept(root)).images(20)[0].height == 64
    assert build_index(Source(config_of(root)), rules, kept(root), rebuild=True).images(20)[0].height == 32


# ------------------------------------------------------------------------------- kills, several processes, full disks


def in_child(work: Any) -> int:
    """Exit status of a forked process that does `work`; negative: the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_killed_build_goes_on(root: Path, chat: ChatFormat, measured: list[int], small_chunks: None) -> None:
    def killed() -> None:
        def progress(done: int, _: int) -> None:
            if done == 24:
                os.kill(os.getpid(), signal.SIGKILL)

        build_index(Source(config_of(root)), rules_of(chat), kept(root), progress=progress)

    assert in_child(killed) == -signal.SIGKILL
    assert open_index(Source(config_of(root)), rules_of(chat), kept(root)) is None
    seen: list[int] = []
    index = build_index(
        Source(config_of(root)),
        rules_of(chat),
        kept(root),
        progress=lambda done, total: seen.append(done * 100 + total),
    )
    assert measured == [24, 32]
    assert seen == [840, 1640, 2440, 3240, 4040]
    assert columns(index) == columns(build_index(Source(config_of(root)), rules_of(chat), kept(root), rebuild=True))
    assert [p.name for p in (root.parent / "cache").iterdir() if p.is_dir()] == []


def test_a_damaged_chunk_of_a_killed_build_is_measured_again(
    root: Path, chat: ChatFormat, measured: list[int], small_chunks: None
) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 24:
            raise StopError

    with pytest.raises(StopError):
        build_index(Source(config_of(root)), rules_of(chat), kept(root), progress=stop)
    (part,) = (root.parent / "cache").glob(".*.parts/000001-*.arrow")
    data = part.read_bytes()
    part.write_bytes(data[: len(data) // 2])
    measured.clear()
    build_index(Source(config_of(root)), rules_of(chat), kept(root))
    assert measured == [8, 24, 32]


def test_workers_change_nothing(root: Path, chat: ChatFormat, small_chunks: None) -> None:
    write_lines(root, 60, {3: b"{", 30: b"\0", 59: b"[]"})
    files = []
    for workers in (1, 2, 3):
        place = IndexConfig(folder=root.parent / f"cache{workers}", workers=workers)
        files.append(build_index(Source(config_of(root)), rules_of(chat), place).path.read_bytes())
    assert files[0] == files[1] == files[2]


def _build_and_tell(root: Path, chat: ChatFormat, start: Any, queue: Any) -> None:
    start.wait()
    index = build_index(Source(config_of(root)), rules_of(chat), kept(root))
    queue.put(columns(index)["text_tokens"])


def test_processes_that_build_at_once_get_the_same_whole_index(
    root: Path, chat: ChatFormat, small_chunks: None
) -> None:
    context = multiprocessing.get_context("fork")
    start, queue = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_build_and_tell, args=(root, chat, start, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    expected = columns(build_index(Source(config_of(root)), rules_of(chat), kept(root), rebuild=True))["text_tokens"]
    assert found == [expected] * 4
    assert len(list((root.parent / "cache").glob("*.arrow"))) == 1
    assert not list((root.parent / "cache").glob("*.parts"))


def test_who_comes_second_waits_and_says_so(root: Path, chat: ChatFormat, measured: list[int]) -> None:
    path = build_index(Source(config_of(root)), rules_of(chat), kept(root)).path
    whole = path.read_bytes()
    path.unlink()
    measured.clear()
    said: list[str] = []
    with path.with_name(f".{path.name}.lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def first_is_done(text: str) -> None:
            said.append(text)
            path.write_bytes(whole)
            fcntl.flock(lock, fcntl.LOCK_UN)

        build_index(Source(config_of(root)), rules_of(chat), kept(root), say=first_is_done)
    assert len(said) == 1
    assert "waiting for another process" in said[0]
    assert measured == []


def test_file_systems_without_locks_do_without(root: Path, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(index_build.fcntl, "flock", refuse)
    assert len(build_index(Source(config_of(root)), rules_of(chat), kept(root))) == 40


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    root: Path, chat: ChatFormat, measured: list[int], small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    write = index_file._Summed.write

    def limited(self: Any, data: Any) -> int:
        nonlocal written
        written += len(data)
        if written > 9000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    with monkeypatch.context() as full:
        full.setattr(index_file._Summed, "write", limited)
        with pytest.raises(OutputError, match=r"no space left to write .*data\.index\.folder"):
            build_index(Source(config_of(root)), rules_of(chat), kept(root))
    done = len(measured) - 1
    assert done >= 1
    assert not [p for p in (root.parent / "cache").rglob("*") if p.name.endswith(".tmp")]
    measured.clear()
    build_index(Source(config_of(root)), rules_of(chat), kept(root))
    assert measured == [8 * k for k in range(done, 5)]


def test_a_folder_that_is_none_is_one_sentence(root: Path, chat: ChatFormat) -> None:
    (root.parent / "cache").touch()
    with pytest.raises(OutputError, match=r"cannot be written .*data\.index\.folder"):
        build_index(Source(config_of(root)), rules_of(chat), kept(root))


# ------------------------------------------------------------------------------------------------------ damaged indexes


def damages(data: bytes) -> Iterator[bytes]:
    yield b""
    yield b"no index"
    yield data[:-1]
    yield data[: len(data) // 2]
    yield bytes(len(data))
    for at in range(0, len(data), len(data) // 397):
        yield data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]


def test_whatever_is_damaged_is_noticed_or_does_not_matter(root: Path, chat: ChatFormat) -> None:
    path = build_index(Source(config_of(root)), rules_of(chat), kept(root)).path
    data, noticed = path.read_bytes(), 0
    expected = columns(Index(IndexFile(path)))
    header = IndexFile(path).header
    copy = root.parent / "damaged.arrow"
    for damaged in damages(data):
        copy.unlink(missing_ok=True)  # a file that is mapped must not change
        copy.write_bytes(damaged)
        try:
            file = IndexFile(copy)
            assert columns(Index(file)) == expected
            assert file.header == header
        except IndexDamagedError:
            noticed += 1
    assert noticed > 200  # what is left is the footer, which only other readers read


def test_a_damaged_index_is_built_anew_and_said(root: Path, chat: ChatFormat, measured: list[int]) -> None:
    index = build_index(Source(config_of(root)), rules_of(chat), kept(root))
    expected, path = columns(index), index.path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    measured.clear()
    said: list[str] = []
    source = open_source(config_of(root), kept(root))
    assert columns(build_index(source, rules_of(chat), kept(root), say=said.append)) == expected
    assert measured == [0]
    assert said == ["the index of source 's' is damaged (its check sum is wrong) and is built anew"]


# ------------------------------------------------------------------------------------------------------- hostile input


def test_bad_records_cost_only_themselves(root: Path, chat: ChatFormat) -> None:
    good = json.dumps(record(4, np.random.default_rng(0))).encode()
    bad = {
        2: b"\0" * 40,
        4: b"x" * (50 << 20),
        6: b'{"messages": "\xff"}',
        8: b'{"messages": []}',
        10: good.replace(b"assistant", b"robot"),
        12: json.dumps({"images": ["../x.png"], "messages": [{"role": "user", "content": "a"},
                                                            {"role": "assistant", "content": "b"}]}).encode(),
        14: json.dumps({"messages": [{"role": "user", "content": "<box>[[1, 2]]</box>"},
                                     {"role": "assistant", "content": "b"}]}).encode(),
    }  # fmt: skip
    path = write_lines(root, 20, bad)
    path.write_bytes(path.read_bytes()[:-30])  # and the copy was cut off
    source = Source(config_of(root))
    index = build_index(source, rules_of(chat), kept(root))
    problems = {i: index.problem(i) for i in index.unusable.tolist()}
    codes = {i: problem.code for i, problem in problems.items() if problem}
    assert codes == {2: "line-encoding", 4: "line-too-long", 6: "line-encoding", 8: "record-type", 10: "record-role",
                     12: "image-outside", 14: "box-syntax", 19: "line-syntax"}  # fmt: skip
    assert "NUL byte" in problems[2].message  # type: ignore[union-attr]
    assert "50 MB" in problems[4].message  # type: ignore[union-attr]
    assert "truncated" in problems[19].message  # type: ignore[union-attr]
    assert source.where(4).endswith("a.jsonl:5")
    assert index.sizes(index.unusable).text.tolist() == [0] * 8
    assert index.usable(5)
    assert index.text_tokens[5] > 0


def test_a_file_that_changes_under_the_build_is_refused(root: Path, chat: ChatFormat) -> None:
    source = Source(config_of(root))

    def appended(*_: int) -> None:
        with (root / "a.jsonl").open("a") as stream:
            stream.write("{}\n")

    with pytest.raises(DataError, match=r"a\.jsonl: changed while it was indexed"):
        build_index(source, rules_of(chat), kept(root), progress=appended)
    assert len(build_index(Source(config_of(root)), rules_of(chat), kept(root))) == 41


# --------------------------------------------------------------------------------------------------------- the command


def recipe(tmp_path: Path, **options: Any) -> Path:
    root = tmp_path / "data"
    write_data(root, 12)
    path = write_recipe(tmp_path, root, tmp_path / "out")
    values = json.loads(path.read_text())
    values["data"]["index"] = {"folder": str(tmp_path / "cache"), "workers": 1}
    values["data"] |= options
    path.write_text(json.dumps(values))
    return path


def test_the_command_builds_once_and_reports(tmp_path: Path, measured: list[int]) -> None:
    path = recipe(tmp_path)
    with (tmp_path / "data" / "train.jsonl").open("a") as stream:
        stream.write("{\n")
    seen: list[tuple[int, int]] = []
    report = vitp.index(path, progress=lambda done, total: seen.append((done, total)))
    assert (len(measured), seen[-1]) == (1, (14, 14))
    (source,) = report.sources
    assert (source.samples, source.unusable, source.tiles) == (14, {"line-syntax": 1}, 12)
    assert source.visual_tokens == 12 * 16
    assert source.examples[0].startswith(f"{tmp_path / 'data' / 'train.jsonl'}:14: ")
    assert report.to_json()["sources"][0]["supervised_tokens"] == source.supervised_tokens > 13
    assert vitp.index(path) == report
    assert len(measured) == 1


def test_one_bad_source_does_not_keep_the_others_from_an_index(tmp_path: Path) -> None:
    tokenizer = build_tokenizer(CORPUS, 400)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = recipe(tmp_path)
    values = json.loads(path.read_text())
    values["model"]["language_model"] = {"path": str(tmp_path / "tokenizer")}
    (tmp_path / "data" / "cut.json.gz").write_bytes(gzip.compress(b"[" + b"{}, " * 5000)[:60])
    values["data"]["sources"].append({"name": "cut", "root": str(tmp_path / "data"), "annotations": "cut.json.gz"})
    path.write_text(json.dumps(values))
    report = vitp.index(path)
    assert [source.name for source in report.sources] == ["mini"]
    assert "cut.json.gz" in report.failed["cut"]
    assert "damaged or truncated" in report.failed["cut"]


def test_the_command_line_ends_with_json_and_2_where_a_source_failed(tmp_path: Path) -> None:
    path = str(recipe(tmp_path))
    done = CliRunner().invoke(app, ["index", path, "--workers", "1", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout.splitlines()[-1])["sources"][0]["samples"] == 13
    build_tokenizer(CORPUS, 400).save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "data" / "train.jsonl").write_bytes(b"\xff\xfe{")
    language = "model.language_model={path: " + str(tmp_path / "tokenizer") + "}"
    failed = CliRunner().invoke(app, ["index", path, language])
    assert failed.exit_code == 2
    assert "mini: no index, since" in failed.output
    assert "UTF-16" in failed.output


def test_where_an_index_lies_is_no_part_of_a_run(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    first, second = (load(PretrainConfig, path, [f"data.index.workers={n}"]) for n in (1, 2))
    sources = [Source(source) for source in first.data.sources]
    assert fingerprint(first, sources) == fingerprint(second, sources)


def test_the_default_place_is_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("VITP_CACHE", raising=False)
    assert IndexConfig().place == tmp_path / "vitp" / "index"
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "own"))
    assert IndexConfig().place == tmp_path / "own" / "index"


def test_quads_count_where_images_move(root: Path, chat: ChatFormat) -> None:
    """Unreadable ones are refused as in training, and crops that quads may widen count as the whole image."""
    texts = ["<quad>[[10, 20, 900, 20, 900, 800, 10, 800]]</quad>", "<quad>[[1, 2]]</quad>", "nothing located"]
    name = next(p.name for p in sorted(root.iterdir()) if p.suffix == ".png")
    turns = [[{"role": "user", "content": "<image>a"}, {"role": "assistant", "content": text}] for text in texts]
    (root / "a.jsonl").write_text("".join(json.dumps({"images": [name], "messages": t}) + "\n" for t in turns))
    for moves in (True, False):
        augment = AugmentConfig(rot90=moves, crop_min_scale=0.2 if moves else 1.0)
        source, rules = Source(config_of(root, augment=augment)), rules_of(chat)
        index, steps = build_index(source, rules, kept(root)), builder(source, rules, TokenDropConfig())
        assert index.unusable.tolist() == ([1] if moves else [])
        assert [bool(flag & Flag.BOXES) for flag in index.flags] == [moves, False, False]
        for i in range(3):
            with pytest.raises(DataError, match="is no quad") if not index.usable(i) else nullcontext():
                steps.sample(source, i, 5, 0, text_only=False)

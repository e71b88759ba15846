"""Damaged, forged and misnamed text files and shards: one sentence with the place, and what is good stays usable."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.storedata import TURNS, bad, good, member, opened, outcomes, png, record, refusal, turns, write_tar, zstd
from vitp.errors import DataError, OutputError
from vitp.images.decode import ImageError
from vitp.images.read import ImageConfig, read_image
from vitp.instruction import unpack
from vitp.instruction.check import check_sources
from vitp.instruction.native import CAPTION_PROMPTS

# ---------------------------------------------------------------------------------------------------- compressed text

PACKERS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize(("suffix", "least"), [(".gz", 140), (".zst", 100)])  # zstd: in blocks of 128 KB
def test_of_a_half_written_file_the_first_half_is_used(tmp_path: Path, suffix: str, least: int) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(600).hex() for _ in range(300)]  # hardly compressible: half the file is half the texts
    packed = PACKERS[suffix](b"\n".join(map(record, texts)) + b"\n")
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed[: len(packed) // 2])
    for _ in range(2):  # the second time from the cache
        source = opened(tmp_path, f"a.jsonl{suffix}")
        kept = good(source)
        assert kept == texts[: len(kept)]
        assert least <= len(kept) <= 150
        found = bad(source)
        assert set(found) == {f"a.jsonl{suffix}:{line}" for line in (len(kept) + 1, len(kept) + 2)}
        last = found[f"a.jsonl{suffix}:{len(kept) + 2}"]
        assert last.code == "file-damaged"
        assert "what follows cannot be unpacked" in str(last)
    assert len(check_sources([source]).bad) == 2


@pytest.mark.parametrize("suffix", PACKERS)
def test_wherever_a_packed_file_is_cut(tmp_path: Path, suffix: str) -> None:
    texts = ["one", "two", "three"]
    packed = PACKERS[suffix](b"\n".join(map(record, texts)) + b"\n")
    for cut in range(len(packed)):
        (tmp_path / f"{cut}.jsonl{suffix}").write_bytes(packed[:cut])
        try:
            source = opened(tmp_path, f"{cut}.jsonl{suffix}")
        except DataError as error:
            assert "damaged or truncated" in str(error) or "no record" in str(error)  # noqa: PT017
            continue
        kept = good(source)
        assert kept == texts[: len(kept)]
        assert "file-damaged" in {error.code for error in bad(source).values()}, cut


def test_a_damaged_array_is_refused_with_what_is_wrong(tmp_path: Path) -> None:
    data = json.dumps([json.loads(record(str(np.random.default_rng(i).bytes(99)))) for i in range(99)]).encode()
    (tmp_path / "a.json.zst").write_bytes(zstd(data)[:5000])
    assert "damaged or truncated (Truncated" in refusal(tmp_path, "a.json.zst")


def test_the_cache_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(record("one")))
    (tmp_path / "file").touch()
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OutputError, match="set the environment variable VITP_CACHE"):
        opened(tmp_path, "a.jsonl.gz")
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(unpack, "_unpack", full)
        with pytest.raises(OutputError, match="free some space there, or set"):
            opened(tmp_path, "a.jsonl.gz")
    source = opened(tmp_path, "a.jsonl.gz")
    assert good(source) == ["one"]
    made = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(made) == 1  # no half-made file is left
    copy = opened(tmp_path, "a.jsonl.gz")
    made[0].unlink()
    assert good(copy) == ["one"]  # made again
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(record("two, longer")))
    assert good(opened(tmp_path, "a.jsonl.gz")) == ["two, longer"]
    assert len([path for path in (tmp_path / "cache").rglob("*") if path.is_file()]) == 1  # the older one is gone


def test_shards_need_no_cache_and_trust_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.json", record("one")), ("../1.json", record("x"))])
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "a.tar" / "cache"))  # cannot be made
    expected = outcomes(opened(tmp_path, "a.tar"))
    monkeypatch.setenv("VITP_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # the second time from the cache
        assert list(map(str, outcomes(opened(tmp_path, "a.tar")))) == list(map(str, expected))
    (made,) = (path for path in (tmp_path / "cache").rglob("*.npz"))
    whole = made.read_bytes()
    for data in (b"", b"rubbish", whole[: len(whole) // 2]):
        made.write_bytes(data)
        assert list(map(str, outcomes(opened(tmp_path, "a.tar")))) == list(map(str, expected))


def test_long_and_binary_records_cost_themselves(tmp_path: Path) -> None:
    long = record("x" * (50 << 20))
    (tmp_path / "a.jsonl").write_bytes(record("one") + b"\n" + long + b"\n" + b"\0" * 99 + b"\n" + record("four"))
    (tmp_path / "a.json").write_bytes(b"[" + record("one") + b",\n" + long + b",\n" + record("four") + b"]")
    shard = [("0.json", record("one")), ("1.json", long), ("2.json", b"\0" * 99), ("3.json", record("four"))]
    write_tar(tmp_path / "a.tar", shard)
    rows = [turns(text) for text in ("one", "x" * (50 << 20), "four")]
    pq.write_table(pa.table({"conversations": pa.array(rows, TURNS)}), tmp_path / "a.parquet")
    places = {"a.jsonl": ("a.jsonl:2", "a.jsonl:3"), "a.json": ("a.json:2",), "a.tar": ("a.tar:1.json", "a.tar:2.json"),
              "a.parquet": ("a.parquet:row 1",)}  # fmt: skip
    for name, where in places.items():
        source = opened(tmp_path, name)
        assert good(source) == ["one", "four"], name
        found = bad(source)
        assert tuple(found) == where
        assert "50 MB long, more than the 32 MB allowed" in str(found[where[0]])
        assert all("NUL byte" in str(found[place]) for place in where[1:])


# ------------------------------------------------------------------------------------------------------------- shards


def test_wherever_a_shard_is_cut(tmp_path: Path) -> None:
    """Samples in front of the cut stay; at most one is cut itself; and something always says that there was more."""
    members: list[tuple[str, bytes]] = []
    for number in range(4):
        members += [(f"{number}.png", png(40, 40)), (f"{number}.json", record(str(number)))]
    whole = write_tar(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        ends = [member.offset_data + member.size for member in tar]
    end = -(-ends[-1] // 512) * 512
    for cut in [*range(1, end, 300), end - 512, end - 511, end - 1, end]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        try:
            source = opened(tmp_path, "cut.tar")
        except DataError as error:
            assert "is no tar file" in str(error) and cut < 512  # noqa: PT017, PT018
            continue
        kept = good(source)
        assert kept == [str(number) for number in range(sum(each <= cut for each in ends) // 2)], cut
        found = bad(source)
        assert 1 <= len(found) <= 2
        assert list(found.values())[-1].code == "shard-member"
        for index in range(len(kept)):
            assert read_image(source.image_file(source.sample(index).images[0]), ImageConfig()).shape == (3, 40, 40)
    (tmp_path / "cut.tar").write_bytes(whole[: end + 512])  # one zero block ends it too
    assert not bad(opened(tmp_path, "cut.tar"))


def test_damage_inside_a_shard_and_shards_in_a_row(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", [(f"{i}.json", record(str(i))) for i in range(3)]).read_bytes()
    second = write_tar(tmp_path / "b.tar", [(f"{i}.json", record(str(i))) for i in range(3, 6)]).read_bytes()
    (tmp_path / "both.tar").write_bytes(first + second)  # `cat a.tar b.tar`
    assert good(opened(tmp_path, "both.tar")) == list("012345")
    forged = bytearray(first)
    forged[1024:1100] = b"\xff" * 76  # the header of the second member
    (tmp_path / "forged.tar").write_bytes(forged)
    source = opened(tmp_path, "{forged,b}.tar")
    assert good(source) == list("0345")
    assert "no tar header at byte 1024" in str(bad(source)["forged.tar:byte 1024"])
    (tmp_path / "no.tar").write_bytes(b"<html>not found</html>" * 60)
    assert "is no tar file" in refusal(tmp_path, "no.tar")
    (tmp_path / "no.tar.gz").write_bytes(b"<html>not found</html>" * 60)
    assert "damaged or truncated" in refusal(tmp_path, "no.tar.gz")
    (tmp_path / "empty.tar").write_bytes(b"")
    assert "is no tar file" in refusal(tmp_path, "empty.tar")


def test_members_that_no_sample_may_have(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    with tarfile.open(root / "a.tar", "w") as tar:
        member(tar, "0.png", png())
        member(tar, "0.json", record("good", image="0.png"))
        member(tar, "../up.json", record("x"))
        member(tar, "/etc/abs.json", record("x"))
        member(tar, "b/../../c.png", png())
        member(tar, "1.json", record("x"))
        member(tar, "1.png", b"", type=tarfile.SYMTYPE, linkname="../secret.png")
        member(tar, "2.json", record("x"))
        member(tar, "2.png", b"", type=tarfile.LNKTYPE, linkname="0.png")
        member(tar, "3.json", b"", type=tarfile.FIFOTYPE)
        member(tar, "4.png", png())
        member(tar, "5.json", record("x"))
        member(tar, "5.json", record("y"))
        member(tar, "6.json", record("x", image="../secret.png"))
        member(tar, "7.json", record("x", image="0.png"))
        member(tar, "8.json", record("x"))
        member(tar, "8.png", png())
        member(tar, "8.mask.png", png())
        member(tar, "README", b"hello")
        member(tar, "._0.png", b"rubbish of another system")
        member(tar, "folder", b"", type=tarfile.DIRTYPE)
        member(tar, "9.json", record("last"))
    source = opened(root, "a.tar")
    assert good(source) == ["good", "last"]
    found = {place.removeprefix("a.tar:"): str(error) for place, error in bad(source).items()}
    said = {
        "../up.json": "leads out of the shard",
        "/etc/abs.json": "leads out of the shard",
        "b/../../c.png": "leads out of the shard",
        "1.json": "is a link to '../secret.png'",
        "2.json": "is a link to '0.png'",
        "3.json": "is a device, pipe or sparse file",
        "4.png": "has no .json or .txt beside it",
        "5.json": "is there twice (5.json)",
        "6.json": "names the image ../secret.png, which its key does not hold (its images: none)",
        "7.json": "names the image 0.png, which its key does not hold",
        "8.json": "names none of its images (8.png, 8.mask.png)",
        "README": "has no .json or .txt beside it",
    }
    assert set(found) == set(said)
    for place, text in said.items():
        assert text in found[place], place
    for name in ("a.tar:../up.json", "a.tar:1.png", "/etc/passwd", "../secret.png", "secret.png"):
        with pytest.raises(ImageError, match="in none of the shards"):
            source.image_file(name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "root", "secret.png"]  # nothing extracted


def test_captions_and_named_images(tmp_path: Path) -> None:
    parts = [
        {"type": "image", "image": "2.b.png"},
        {"type": "text", "text": "?"},
        {"type": "image", "path": "./2.a.png"},
    ]
    pair = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "both"}]}
    members = [
        ("x/0.JPG", png(colour=1)), ("x/0.txt", b" A ship. \n"), ("x/0.json", b'{"url": "u"}'),
        ("1.txt", b"Text alone."),
        ("2.a.png", png(colour=2)), ("2.b.png", png(colour=3)), ("2.json", json.dumps(pair).encode()),
        ("d/3.png", png(colour=4)), ("d/3.json", record("by its full name", image=["d/3.png"])),
        ("4.txt", b"  "),
    ]  # fmt: skip
    write_tar(tmp_path / "a.tar", members)
    source = opened(tmp_path, "a.tar")
    assert good(source) == ["A ship.", "Text alone.", "both", "by its full name"]
    assert [error.code for error in bad(source).values()] == ["empty-text"]
    samples = [source.sample(i) for i in range(4)]
    assert samples[0].turns[0].text.removeprefix("<image>\n") in CAPTION_PROMPTS
    colours = [[int(read_image(source.image_file(n), ImageConfig())[0, 0, 0]) for n in s.images] for s in samples]
    assert colours == [[1], [], [3, 2], [4]]
    assert samples[1].turns[0].text in CAPTION_PROMPTS
    assert samples[0].images == ("a.tar:x/0.JPG",)


def test_shards_that_change_or_vanish(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.json", record("one"))])
    source = opened(tmp_path, "a.tar")
    name = source.sample(0).images[0]
    write_tar(tmp_path / "a.tar", [("0.png", png(30, 30)), ("0.json", record("another"))])
    os.utime(tmp_path / "a.tar", (1, 1))
    for read in (lambda: source.sample(0), lambda: read_image(source.image_file(name), ImageConfig())):
        with pytest.raises(DataError, match="changed while it was in use"):
            read()
    (tmp_path / "a.tar").unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        source.sample(0)


def test_patterns_name_what_is_missing(tmp_path: Path) -> None:
    for number in (1, 2):
        write_tar(tmp_path / f"s-{number:02}.tar", [("0.json", record(str(number)))])
    (tmp_path / "t.jsonl").write_bytes(record("one"))
    assert good(opened(tmp_path, "s-{01..02}.tar")) == good(opened(tmp_path, "s-*.tar")) == ["1", "2"]
    assert "s-03.tar: is one of the annotations and no file; did you mean" in refusal(tmp_path, "s-{01..03}.tar")
    assert "matches no file" in refusal(tmp_path, "x-*.tar")
    assert "runs backwards" in refusal(tmp_path, "s-{03..01}.tar")
    assert "leave them out" in refusal(tmp_path, "s-*.tar", split="val")
    assert good(opened(tmp_path, "{t,t}.jsonl")) == ["one"]
    (tmp_path / "u.jsonl").write_bytes(record("one"))
    assert "several text files" in refusal(tmp_path, "*.jsonl")
    (tmp_path / "x.parquet").touch()
    assert "both shards" in refusal(tmp_path)

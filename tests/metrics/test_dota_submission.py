"""DOTA submissions: what is in the zip, the way back, and patches that become images."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitp.boxes.formats import from_xyxy, regularise, to_quads, to_xyxy
from vitp.boxes.iou import rotated_iou_pairs
from vitp.boxes.objects import Detections
from vitp.errors import DataError, OutputError
from vitp.metrics.dota_submission import merge_patches, read_submission, write_submission

CLASSES = ("plane", "large-vehicle", "dam")


def _found(seed: int, count: int, *, side: float = 2000) -> Detections:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(count, 5, generator=generator)
    boxes = torch.cat((numbers[:, :2] * side, 6 + numbers[:, 2:4] * 90, (numbers[:, 4:] - 0.5) * 3.1), 1)
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    return Detections(regularise(boxes), scores, torch.randint(0, 3, (count,), generator=generator))


def _texts(path: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode().splitlines() for name in archive.namelist()}


def test_the_zip_is_what_the_server_reads(tmp_path: Path) -> None:
    found = Detections(
        torch.tensor([[100.0, 50, 40, 20, 0], [10, 10, 8, 4, torch.pi / 6]]),
        torch.tensor([0.75, 0.0003]),
        torch.tensor([1, 1]),
    )
    path = tmp_path / "task1.zip"
    written = write_submission(
        path, [("P0001", found), ("P0002", found.take(torch.tensor([], dtype=torch.long)))], CLASSES
    )
    assert written == (2, 2, 0)
    texts = _texts(path)
    assert list(texts) == ["Task1_plane.txt", "Task1_large-vehicle.txt", "Task1_dam.txt"]
    assert texts["Task1_plane.txt"] == texts["Task1_dam.txt"] == []
    first, second = texts["Task1_large-vehicle.txt"]
    assert first == "P0001 0.75 80.00 40.00 120.00 40.00 120.00 60.00 80.00 60.00"
    corners = [round(value, 2) for value in to_quads(found.boxes[1]).flatten().tolist()]
    assert [float(v) for v in second.split()[2:]] == pytest.approx(corners, abs=0.011)
    assert second.split()[1] == "0.0003"


def test_the_same_detections_give_the_same_bytes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        write_submission(tmp_path / name, [("P1", _found(0, 50))], CLASSES)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    before = (tmp_path / "a.zip").read_bytes()
    with pytest.raises(DataError):
        write_submission(tmp_path / "a.zip", [("P 1", _found(0, 5))], CLASSES)
    assert (tmp_path / "a.zip").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"a.zip", "b.zip"}
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_submission(tmp_path / "file" / "a.zip", [("P1", _found(0, 5))], CLASSES)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 40))
def test_round_trip_of_rotated_boxes(tmp_path_factory: pytest.TempPathFactory, seed: int, count: int) -> None:
    path, found = tmp_path_factory.mktemp("zip") / "t.zip", _found(seed, count)
    write_submission(path, [("P1", found), ("P0", _found(seed + 1, 3))], CLASSES)
    back = read_submission(path, CLASSES)
    assert list(back) == (["P0", "P1"] if count else ["P0"])
    if count:
        torch.testing.assert_close(back["P1"].scores, found.scores, rtol=0, atol=0)
        assert sorted(back["P1"].labels.tolist()) == sorted(found.labels.tolist())
        by_score = found.scores.argsort(descending=True, stable=True)
        if len(set(found.scores.tolist())) == count:
            assert torch.equal(back["P1"].labels, found.labels[by_score])
            assert rotated_iou_pairs(back["P1"].boxes, found.boxes[by_score]).min() > 0.99


def test_round_trip_of_upright_boxes(tmp_path: Path) -> None:
    found = _found(3, 30)
    upright = Detections(to_xyxy(found.boxes), found.scores, found.labels)
    for name, given_boxes in (("upright", upright), ("rotated", found)):
        write_submission(tmp_path / f"{name}.zip", [("P1", given_boxes)], CLASSES, task=2)
        assert list(_texts(tmp_path / f"{name}.zip")) == [f"Task2_{label}.txt" for label in CLASSES]
        back = read_submission(tmp_path / f"{name}.zip", CLASSES, task=2)["P1"]
        torch.testing.assert_close(back.boxes, upright.boxes, rtol=0, atol=0.0051)
    write_submission(tmp_path / "corners.zip", [("P1", upright)], CLASSES)
    corners = read_submission(tmp_path / "corners.zip", CLASSES)["P1"].boxes
    assert rotated_iou_pairs(corners, from_xyxy(upright.boxes)).min() > 0.99


def test_detections_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    found = _found(1, 4)
    found.scores[1], found.boxes[2, 3] = torch.nan, torch.inf
    assert write_submission(tmp_path / "a.zip", [("P1", found)], CLASSES) == (1, 2, 2)


@pytest.mark.parametrize(
    ("images", "classes", "sentence"),
    [
        (["P1", "P1"], CLASSES, r"^P1: came before; merge the patches of an image first"),
        (["P 1"], CLASSES, r"^P 1: has a blank in its name, which parts the columns"),
        ([""], CLASSES, "has a blank in its name"),
        (["P1"], ("plane",), r"^P1: has a detection of the class [12], known are 0 \.\.\. 0$"),
        (["P1"], ("a", "b/c", "d"), r"^the class 'b/c' cannot name a file of a submission; rename it$"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(
    tmp_path: Path, images: list[str], classes: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(DataError, match=sentence):
        write_submission(tmp_path / "a.zip", [(name, _found(4, 20)) for name in images], classes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "Task1_plane.txt",
            "P1 0.5 1 2 3 4 5 6 7",
            r"a\.zip:Task1_plane\.txt:1: 'P1 0\.5 1 2 3 4 5 6 7' is not an image",
        ),
        ("Task1_plane.txt", "\nP1 x 1 2 3 4 5 6 7 8", r"Task1_plane\.txt:2: .* a score and 8 finite coordinates; mend"),
        ("Task1_plane.txt", "P1 nan 1 2 3 4 5 6 7 8", r"Task1_plane\.txt:1: "),
        ("Task1_boat.txt", "", r"a\.zip: holds 'Task1_boat\.txt'; a submission holds"),
        ("sub/Task1_plane.txt", "", r"a\.zip: holds 'sub/Task1_plane\.txt'"),
        ("Task1_plane.txt", "", r"a\.zip: holds no Task1_large-vehicle\.txt; write one file a class"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
    with pytest.raises(DataError, match=sentence):
        read_submission(path, CLASSES)


def test_a_file_that_is_no_zip_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("no zip")
    for file in ("a.zip", "missing.zip"):
        with pytest.raises(
            DataError, match=rf"{file}: cannot be read as a submission \(.*\); give a zip of text files"
        ):
            read_submission(tmp_path / file, CLASSES)


def _patches(found: Detections, side: int, step: int, extent: int) -> list[tuple[str, Detections]]:
    """What each window sees: the boxes whose centre lies in it."""
    patches = []
    for top in range(0, extent, step):
        for left in range(0, extent, step):
            x, y = found.boxes[:, 0] - left, found.boxes[:, 1] - top
            seen = found.take((x >= 0) & (x < side) & (y >= 0) & (y < side))
            boxes = torch.cat((seen.boxes[:, :2] - torch.tensor([left, top]), seen.boxes[:, 2:]), 1)
            patches.append((f"P_1__x__{side}__{left}___{top}", Detections(boxes, seen.scores, seen.labels)))
    return patches


def test_patches_become_the_image_again() -> None:
    """Of objects that do not overlap, seen in up to four windows, each is there once and where it was."""
    places = torch.arange(10) * 180.0 + 90
    centres = torch.cartesian_prod(places, places)
    count = len(centres)
    generator = torch.Generator().manual_seed(0)
    sides, angle = torch.tensor([[60.0, 25]]).expand(count, 2), torch.rand(count, 1, generator=generator) * 3 - 1.5
    scores = torch.rand(count, generator=generator).sort(descending=True).values
    found = Detections(torch.cat((centres, sides, angle), 1), scores, torch.arange(count) % 3)
    patches = [
        *_patches(found, 1024, 824, 1800),
        ("empty__1024__0___0", found.take(torch.zeros(count, dtype=torch.bool))),
    ]
    assert sum(len(seen) for _, seen in patches) > count
    merged = merge_patches(patches)
    assert list(merged) == ["P_1__x", "empty"]
    assert len(merged["empty"]) == 0
    back = merged["P_1__x"]
    torch.testing.assert_close(back.scores, found.scores, rtol=0, atol=0)
    torch.testing.assert_close(back.boxes, found.boxes, rtol=0, atol=1e-3)
    assert torch.equal(back.labels, found.labels)


def test_merging_is_by_class_and_by_rotated_overlap() -> None:
    boxes = torch.tensor(
        [[100.0, 100, 80, 8, 0.785], [100, 120, 80, 8, 0.785], [100, 100, 80, 8, 0.785], [101, 100, 80, 8, 0.785]]
    )
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([0, 0, 1, 0]))
    merged = merge_patches([("a__1024__0___0", found)])["a"]
    assert merged.scores.tolist() == pytest.approx(
        [0.9, 0.8, 0.7]
    )  # beside it, though the enclosing boxes overlap; other class
    upright = Detections(to_xyxy(boxes), found.scores, found.labels)
    assert merge_patches([("a__1024__0___0", upright)])["a"].scores.tolist() == pytest.approx([0.9, 0.7])


@pytest.mark.parametrize("name", ["P0001", "P0001__0.5__0___0", "P1__1024__0__0", "__1024__0___0"])
def test_a_name_that_is_no_patch_is_one_sentence(name: str) -> None:
    with pytest.raises(DataError, match=r"is no name of a patch; write image__side__left___top, as in"):
        merge_patches([(name, _found(0, 2))])


def test_a_patch_given_twice_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"^a__9__0___0: came before; give each patch once$"):
        merge_patches([("a__9__0___0", _found(0, 2)), ("a__9__0___0", _found(0, 2))])

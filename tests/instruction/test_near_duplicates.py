"""Images of the pretraining data that show the same picture: found once each, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vitp.demo.scenes import SceneConfig, draw_scene
from vitp.instruction.check import CheckOptions, check_sources
from vitp.instruction.near_duplicates import find_near_duplicates
from vitp.instruction.source import Source, SourceConfig


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty scenes, copies of four, one of them seven times; a flat and a broken image."""
    place = tmp_path_factory.mktemp("near")
    for i in range(20):
        Image.fromarray(draw_scene(11, i, SceneConfig(size=96)).image).save(place / f"s{i:02d}.png")
    for i, turned in ((3, False), (5, True), (8, False)):
        scene = Image.open(place / f"s{i:02d}.png").convert("RGB")
        scene = scene.transpose(Image.Transpose.TRANSVERSE) if turned else scene
        scene.resize((140, 120)).save(place / f"t{i:02d}.jpg", quality=70)
    for k in range(7):
        Image.open(place / "s12.png").convert("RGB").save(place / f"u{k}.jpg", quality=60 + 5 * k)
    Image.new("RGB", (50, 50), (10, 60, 90)).save(place / "v0.png")
    Image.new("RGB", (50, 50), (10, 60, 90)).save(place / "v1.png")
    (place / "w.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return place


def test_each_copy_is_told_once_with_its_original(place: Path) -> None:
    images = sorted(place.glob("*.*"))
    found = find_near_duplicates(images)
    pairs = {Path(pair.image).stem: (Path(pair.found_in).stem, pair.turned) for pair in found}
    assert {copy: pairs.pop(copy) for copy in ("t03", "t05", "t08")} == {
        "t03": ("s03", False), "t05": ("s05", True), "t08": ("s08", False)
    }  # fmt: skip
    assert pairs.keys() == {f"u{k}" for k in range(7)}
    assert all(earlier == "s12" or earlier < copy for copy, (earlier, _) in pairs.items())
    assert len(found) == 10
    assert find_near_duplicates(images, workers=2) == found
    assert find_near_duplicates([]) == ()


def record(*images: str) -> str:
    turns = [{"from": "human", "value": "<image>" * len(images) + "What?"}, {"from": "gpt", "value": " ".join(images)}]
    return json.dumps({"images": images, "conversations": turns})


def test_the_finding_names_the_first_use_and_pairs_of_one_sample_belong_together(place: Path) -> None:
    lines = [
        record("s03.png"),
        record("s05.png", "t05.jpg"),
        record("s00.png"),
        record("t03.jpg"),
        record("t03.jpg", "s01.png"),
    ]
    (place / "all.jsonl").write_text("\n".join(lines))
    source = Source(SourceConfig(name="s", root=place, annotations=Path("all.jsonl")))
    assert not check_sources([source]).findings
    seen: list[tuple[int, int]] = []
    options = CheckOptions(near_duplicates=True)
    report = check_sources([source], options, progress=lambda done, total: seen.append((done, total)))
    (finding,) = report.findings
    assert (finding.code, finding.where, finding.sample) == ("near-duplicate-image", f"{place / 'all.jsonl'}:4", 3)
    assert finding.found.startswith(f"image t03.jpg shows the same as {place / 's03.png'} (upright, ")
    assert finding.image == str(place / "t03.jpg")
    assert seen == [(5, 5), (6, 6)]
    assert report.near_duplicates is not None
    assert not report.bad

"""Records kept from training: whole pictures, the same in every run, in no source twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vitp.errors import DataError
from vitp.instruction.held_out import Split, read_splits, split_sources, write_splits
from vitp.instruction.source import Source, SourceConfig


def source(root: Path, name: str, records: list[list[str]]) -> Source:
    """A source whose i-th record shows the named images."""
    root.mkdir(exist_ok=True)
    lines = []
    for i, images in enumerate(records):
        turns = [
            {"from": "human", "value": "<image>\n" * len(images) + f"{name} {i}?"},
            {"from": "gpt", "value": f"{i}"},
        ]
        lines.append(json.dumps(({"image": images} if images else {}) | {"conversations": turns}))
    (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return Source(SourceConfig(name=name, root=root, annotations=Path(f"{name}.jsonl")))


def shown(part: Source) -> set[str]:
    return {image.split("#")[0] for i in range(len(part)) for image in part.sample(i).images}


def parts(one: Source, split: Split) -> tuple[Source, Source]:
    return one.part(split.training), one.part(split.held_out)


def test_no_picture_is_on_both_sides_and_about_as_many_records_as_asked_are_held_out(tmp_path: Path) -> None:
    records = [[f"{i // 3}.png"] for i in range(90)]  # three records a picture
    whole = source(tmp_path, "a", records)
    (split,) = split_sources([whole], [20])
    training, held = parts(whole, split)
    assert len(held) == 21  # whole pictures
    assert len(training) + len(held) == 90
    assert not shown(training) & shown(held)
    for part, rows in ((training, split.training), (held, split.held_out)):
        for i, row in enumerate(rows.tolist()):
            assert part.row(i) == row
            assert part.sample(i) == whole.sample(row)
            assert part.where(i) == whole.where(row)
    with pytest.raises(IndexError, match="no sample 21"):
        held.sample(21)
    assert held.fingerprint() == whole.fingerprint()


def test_the_choice_depends_on_the_names_alone(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(60)]
    first = source(tmp_path / "here", "a", [[name] for name in names])
    order = np.random.default_rng(0).permutation(60)
    second = source(tmp_path / "there", "b", [[names[i]] for i in order])  # elsewhere, in another order
    chosen = [shown(parts(one, split_sources([one], [15])[0])[1]) for one in (first, second)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 15
    fewer = shown(parts(first, split_sources([first], [5])[0])[1])
    assert fewer < chosen[0]
    assert max(int(name.removesuffix(".png")) for name in chosen[0]) > 30  # not the head of the file


def test_pictures_shown_together_and_parts_of_a_file_stay_together(tmp_path: Path) -> None:
    pairs = source(tmp_path, "pairs", [[f"{i}_before.png", f"{i}_after.png"] for i in range(20)])
    training, held = parts(pairs, split_sources([pairs], [6])[0])
    assert len(held) == 6
    assert not shown(training) & shown(held)
    slices = source(tmp_path, "slices", [[f"{i // 5}.nii.gz#slice={i}"] for i in range(40)])
    training, held = parts(slices, split_sources([slices], [8])[0])
    assert len(held) == 10
    assert not shown(training) & shown(held)


def test_a_picture_held_out_of_one_source_is_in_no_other(tmp_path: Path) -> None:
    captions = source(tmp_path, "captions", [[f"{i}.png"] for i in range(30)])
    vqa = source(tmp_path, "vqa", [[f"{i}.png"] for i in range(10, 50)])
    both = source(tmp_path, "both", [[f"{i}.png", f"{i + 50}.png"] for i in range(30)])
    elsewhere = source(tmp_path / "other", "same_names", [[f"{i}.png"] for i in range(30)])
    splits = split_sources([captions, vqa, both, elsewhere], [12, 0, 0, 0])
    held = shown(captions.part(splits[0].held_out))
    assert len(held) == 12
    for one, split in zip((captions, vqa, both), splits[:3], strict=True):
        assert not shown(one.part(split.training)) & held
    assert not len(splits[1].held_out)
    assert len(splits[1].training) < 40
    assert len(splits[3].training) == 30  # other files of the same names


def test_texts_alone_are_held_out_by_what_they_say_and_broken_records_stay_in_training(tmp_path: Path) -> None:
    texts = source(tmp_path, "texts", [[] for _ in range(12)])
    file = tmp_path / "texts.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, *lines, "no json"]) + "\n")  # every text twice
    texts = Source(texts.config)
    (split,) = split_sources([texts], [4])
    assert len(split.held_out) == 4
    assert sorted(split.held_out % 12) == sorted([*set(split.held_out % 12)] * 2)
    assert 24 in split.training


def test_holding_everything_out_is_refused(tmp_path: Path) -> None:
    one = source(tmp_path, "a", [[f"{i}.png"] for i in range(5)])
    with pytest.raises(
        DataError, match="'a': nothing is left to train on once 5 samples are held out.*lower its hold_out"
    ):
        split_sources([one], [5])
    same = source(tmp_path, "b", [["same.png"] for _ in range(5)])
    with pytest.raises(DataError, match="all that show the same pictures"):
        split_sources([same], [1])


def test_a_split_is_read_back_and_refused_for_other_sources(tmp_path: Path) -> None:
    whole = [source(tmp_path, "a", [[f"{i}.png"] for i in range(9)]),
             source(tmp_path, "b", [[f"{i}.png", f"{i + 9}.png"] for i in range(9)])]  # fmt: skip
    splits = split_sources(whole, [3, 0])
    write_splits(tmp_path / "held_out.json", whole, splits)
    for saved, made in zip(read_splits(tmp_path / "held_out.json", whole), splits, strict=True):
        np.testing.assert_array_equal(saved.training, made.training)
        np.testing.assert_array_equal(saved.held_out, made.held_out)
    with pytest.raises(DataError, match="nothing of source 'c'"):
        read_splits(tmp_path / "held_out.json", [source(tmp_path, "c", [["0.png"]])])
    with pytest.raises(DataError, match="source 'a' no longer has"):
        read_splits(tmp_path / "held_out.json", [source(tmp_path, "a", [["0.png"]])])

"""Native annotations: every turn is used once, splits keep images apart, and derived questions give nothing away."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vitp.errors import DataError
from vitp.instruction.native import FORMATS, NativeArgs, detect, labels
from vitp.instruction.presence import PRESENCE
from vitp.instruction.records import RecordError, parse_record
from vitp.instruction.sample import Sample

DATA = Path(__file__).parents[2] / "../shared/data"


def read(form: str, root: Path, split: str = "train", **options: Any) -> list[Sample]:
    return [
        parse_record(item.record, item.where) for item in FORMATS[form](NativeArgs(root=root, split=split, **options))
    ]


def pairs(samples: list[Sample]) -> Counter[tuple[str, str, str]]:
    """(image, question, answer) over all samples."""
    found: Counter[tuple[str, str, str]] = Counter()
    for sample in samples:
        texts = [turn.text.removeprefix("<image>\n") for turn in sample.turns]
        found.update((sample.images[0], q, a) for q, a in zip(texts[::2], texts[1::2], strict=True))
    return found


# ------------------------------------------------------------------------------------------------------------- RSICD


def rsicd_folder(root: Path, images: list[dict[str, Any]]) -> Path:
    (root / "images").mkdir()
    (root / "captions.json").write_text(json.dumps({"images": images}))
    return root


def entry(name: str, *captions: str, scene: str = "port", split: str = "train") -> dict[str, Any]:
    return {"filename": name, "split": split, "class": scene, "captions": captions, "questions": [["theme?", scene]]}


def test_rsicd_turns_and_their_dealing(tmp_path: Path) -> None:
    captions = ("a  ship is near , a pier .", "a ship is near, a pier.", "two boats")
    root = rsicd_folder(tmp_path, [entry("a.jpg", *captions), entry("b.jpg", "sand", scene="desert", split="test")])
    for turns in (1, 2, 3, 9):
        samples = read("rsicd", root, turns=turns)
        assert all(sample.images == ("images/a.jpg",) for sample in samples)
        assert all(len(sample.turns) <= 2 * turns for sample in samples)
        answers = Counter(answer for _, _, answer in pairs(samples).elements())
        opened = 1 if turns < 3 else len(samples)  # with room, every record opens with the scene question
        assert answers == Counter(
            {"a ship is near, a pier.": 1, "two boats": 1, "port": opened}
        )  # repeated caption once
        if turns >= 3:
            assert all(sample.turns[1].text == "port" for sample in samples)
            assert {sample.turns[-1].text for sample in samples} == {"a ship is near, a pier.", "two boats"}
    assert [sample.images for sample in read("rsicd", root, "test")] == [("images/b.jpg",)]
    assert len({sample.images for sample in read("rsicd", root, "all")}) == 2
    with pytest.raises(DataError, match="its splits are test, train and all"):
        read("rsicd", root, "valid")


def test_rsicd_as_published(tmp_path: Path) -> None:
    (tmp_path / "RSICD_images").mkdir()
    sentences = [{"raw": "a road .", "tokens": ["a", "road"]}, {"raw": "a car .", "tokens": []}]
    document = {"dataset": "rsicd", "images": [{"filename": "x.jpg", "split": "val", "sentences": sentences}]}
    (tmp_path / "dataset_rsicd.json").write_text(json.dumps(document))
    (sample,) = read("rsicd", tmp_path, "val")
    assert sample.images == ("RSICD_images/x.jpg",)
    assert [turn.text for turn in sample.turns[1::2]] == ["a road.", "a car."]


def test_presence_questions_are_true_of_the_captions_and_balanced(tmp_path: Path) -> None:
    images = [entry(f"s{i}.jpg", "many ships in a harbor", scene="port") for i in range(6)]
    images += [entry(f"d{i}.jpg", "a vast desert", scene="desert") for i in range(9)]
    images += [entry("b.jpg", "two boats on the water", scene="river")]
    images += [entry(f"n{i}.jpg", scene="harbor") for i in range(3)]  # without captions nothing can be derived
    asked = [
        (image, question, answer)
        for image, question, answer in pairs(read("rsicd", rsicd_folder(tmp_path, images), turns=2)).elements()
        if question.startswith("Is there a")
    ]
    ships = [(image, answer) for image, question, answer in asked if question == "Is there a ship in the image?"]
    assert Counter(answer for _, answer in ships) == {"yes": 6, "no": 6}
    assert all(image.startswith("images/s" if answer == "yes" else "images/d") for image, answer in ships)
    assert not any(image.startswith("images/n") for image, _, _ in asked)
    counts = Counter((question, answer) for _, question, answer in asked)
    assert all(counts[question, "yes"] == counts[question, "no"] for question, _ in counts)
    boats = {answer: image for image, question, answer in asked if question == "Is there a boat in the image?"}
    assert boats["yes"] == "images/b.jpg"
    assert boats["no"].startswith("images/d")  # a harbor full of ships must not be called without boats


def test_an_entry_without_any_turn_is_refused_as_a_record(tmp_path: Path) -> None:
    bare = {"filename": "a.jpg", "split": "train"}
    odd = {"filename": "b.jpg", "split": "train", "questions": [["only a question"]]}
    for item in FORMATS["rsicd"](NativeArgs(root=rsicd_folder(tmp_path, [bare, odd]))):
        with pytest.raises(RecordError):
            parse_record(item.record, item.where)


# ------------------------------------------------------------------------------------------------------------- RSVQA


def rsvqa_folder(root: Path, prefix: str = "LR", split: str = "train") -> Path:
    (root / "Images_LR").mkdir(exist_ok=True)
    for image in (4, 5):
        (root / "Images_LR" / f"{image}.tif").touch()
    stem = f"{prefix}_split_{split}_"
    questions = [
        {"id": i, "img_id": 4 + i % 2, "question": f"q{i}", "answers_ids": [10 + i], "active": True} for i in range(7)
    ]
    questions += [
        {"id": 7, "active": False},
        {"id": 8, "img_id": 9, "question": "q", "answers_ids": [18], "active": True},
    ]
    answers = [{"id": 10 + i, "answer": i if i == 2 else f"a{i}", "active": i != 3} for i in range(9)]
    images = [{"id": 4, "active": True}, {"id": 5, "active": True}, {"id": 9, "active": False}]
    for name, value in (("questions", questions), ("answers", answers), ("images", images)):
        (root / f"{stem}{name}.json").write_text(json.dumps({name: value}))
    return root


def test_rsvqa_joins_active_entries(tmp_path: Path) -> None:
    items = FORMATS["rsvqa"](NativeArgs(root=rsvqa_folder(tmp_path), turns=2))
    unanswered = [item for item in items if "q3" in str(item.record)]  # its answer is not active
    good = [parse_record(item.record, item.where) for item in items if item not in unanswered]
    with pytest.raises(RecordError, match="is null"):
        parse_record(unanswered[0].record, unanswered[0].where)
    assert len(unanswered) == 1
    expected = {("Images_LR/4.tif", f"q{i}", str(i) if i == 2 else f"a{i}") for i in (0, 2, 4, 6)}
    assert expected <= set(pairs(good))
    assert {image for image, _, _ in pairs(good)} == {"Images_LR/4.tif", "Images_LR/5.tif"}
    assert max(pairs(good).values()) == 1


def test_rsvqa_says_which_splits_there_are(tmp_path: Path) -> None:
    root = rsvqa_folder(tmp_path)
    with pytest.raises(DataError, match="no questions of split 'test'; its splits are train"):
        read("rsvqa", root, "test")
    rsvqa_folder(tmp_path, prefix="USGS")
    with pytest.raises(DataError, match="2 data sets; name one as 'annotations' of LR_split"):
        read("rsvqa", root)
    named = NativeArgs(root=root, annotations=root / "USGS_split_train_questions.json")
    assert "USGS" in FORMATS["rsvqa"](named)[0].where
    for path in (root / "Images_LR").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="holds no image named 4"):
        FORMATS["rsvqa"](named)


# ------------------------------------------------------------------------------------------- VQA-RAD, ROCOv2, labels


def test_vqa_rad_cleans_answers_and_splits_by_image(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    document = []
    for i in range(200):
        (tmp_path / "pictures" / f"{i}.jpg").touch()
        document += [
            {"image_name": f"{i}.jpg", "question": f" q\t{j} ", "answer": [12, "Heart \tlungs "][j]} for j in (0, 1)
        ]
    (tmp_path / "VQA_RAD Dataset Public.json").write_text(json.dumps(document))
    sides = {split: read("vqa_rad", tmp_path, split) for split in ("train", "test", "all")}
    names = {split: {sample.images[0] for sample in samples} for split, samples in sides.items()}
    assert names["train"] | names["test"] == names["all"]
    assert not names["train"] & names["test"]
    assert 15 <= len(names["test"]) <= 45
    assert {(q, a) for _, q, a in pairs(sides["all"])} == {("q 0", "12"), ("q 1", "Heart lungs")}
    document = document[: len(document) // 2]  # what is removed does not move the others
    (tmp_path / "VQA_RAD Dataset Public.json").write_text(json.dumps(document))
    assert {sample.images[0] for sample in read("vqa_rad", tmp_path, "test")} <= names["test"]
    with pytest.raises(DataError, match="its splits are train, test and all"):
        read("vqa_rad", tmp_path, "val")


def test_rocov2_rows_and_their_lines(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "valid").mkdir()
    for folder in ("train", "valid"):
        (tmp_path / folder / "r1.jpg").touch()
    text = '\ufeffID,Caption\nr1,"A ""CT"" of\nthe chest, axial."\nr2,An X-ray\nr3,\n'
    (tmp_path / "valid_captions.csv").write_text(text, encoding="utf-8")
    first, second, third = FORMATS["rocov2"](NativeArgs(root=tmp_path, split="valid"))
    sample = parse_record(first.record, first.where)
    assert sample.images == ("valid/r1.jpg",)
    assert sample.turns[1].text == 'A "CT" of the chest, axial.'
    assert (first.where, second.where) == (
        f"{tmp_path / 'valid_captions.csv'}:3",
        f"{tmp_path / 'valid_captions.csv'}:4",
    )
    with pytest.raises(RecordError, match="answer in turn 2 is empty"):
        parse_record(third.record, third.where)
    with pytest.raises(DataError, match=r"0 files \*test_captions.csv"):
        FORMATS["rocov2"](NativeArgs(root=tmp_path, split="test"))
    (tmp_path / "valid_captions.csv").write_text("name,text\na,b\n")
    with pytest.raises(DataError, match="columns 'name, text'"):
        FORMATS["rocov2"](NativeArgs(root=tmp_path, split="valid"))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"images": 3}', '{"questions": [3]}', "[3]", "\udcff"])
def test_damaged_native_files_are_one_sentence(tmp_path: Path, form: str, content: str) -> None:
    for name in ("captions.json", "VQA_RAD Dataset Public.json", "x_train_captions.csv"):
        (tmp_path / name).write_text(content, errors="surrogateescape")
    for kind in ("questions", "answers", "images"):
        (tmp_path / f"LR_split_train_{kind}.json").write_text(content, errors="surrogateescape")
    with pytest.raises(DataError) as caught:
        FORMATS[form](NativeArgs(root=tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "; " in str(caught.value)


def test_detection(tmp_path: Path) -> None:
    for form, name in (("rsicd", "captions.json"), ("rsvqa", "LR_split_train_questions.json"),
                       ("vqa_rad", "VQA_RAD Dataset Public.json"), ("rocov2", "train_captions.csv")):  # fmt: skip
        (tmp_path / form).mkdir()
        (tmp_path / form / name).touch()
        assert detect(tmp_path / form, None) == form
        assert detect(tmp_path, tmp_path / form / name) == form
    assert detect(tmp_path, None) is None
    (tmp_path / "rsicd" / "train_captions.csv").touch()
    assert detect(tmp_path / "rsicd", None) is None  # two at once


def test_labels_from_folders(tmp_path: Path) -> None:
    for name in ("forest", "river"):
        (tmp_path / name / "deep").mkdir(parents=True)
        for i in range(60):
            (tmp_path / name / ("deep" if i % 2 else "") / f"{i}.jpg").touch()
        (tmp_path / name / "notes.txt").touch()
    sides = {split: labels("folder", tmp_path, split) for split in ("train", "test", "all")}
    assert sorted(sides["train"] + sides["test"]) == sides["all"]
    assert len(sides["all"]) == 120
    assert 10 <= len(sides["test"]) <= 40
    assert all(path.relative_to(tmp_path).parts[0] == name for path, name in sides["all"])
    (tmp_path / "val" / "lake").mkdir(parents=True)
    (tmp_path / "val" / "lake" / "1.png").touch()
    assert labels("folder", tmp_path, "val") == [(tmp_path / "val" / "lake" / "1.png", "lake")]
    for split, root in (("valid", tmp_path), ("train", tmp_path / "nowhere"), ("all", tmp_path / "val" / "lake")):
        with pytest.raises(DataError):
            labels("folder", root, split)


# --------------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(
    ("form", "folder", "split", "images", "turns"),
    [
        ("rsicd", "rsicd_128", "train", 4650, None),
        ("rsicd", "rsicd_128", "test", 780, None),
        ("rsvqa", "rsvqa_lr", "train", 24, 2401),
        ("rsvqa", "rsvqa_lr", "val", 6, None),
        ("rsvqa", "rsvqa_hr", "test_phili", 1, 100),
        ("vqa_rad", "vqa_rad", "all", 210, 1507),
        ("rocov2", "rocov2_sample", "train", 53, 53),
        ("rocov2", "rocov2_sample", "test", 13, 13),
    ],
)
def test_real_annotations(form: str, folder: str, split: str, images: int, turns: int | None) -> None:
    root = DATA / folder
    if not root.is_dir():
        pytest.skip(f"no real data {folder}")
    assert detect(root, None) == form
    samples = read(form, root, split)
    assert samples == read(form, root, split)
    names = {name for sample in samples for name in sample.images}
    assert len(names) == images
    assert all((root / name).is_file() for name in names)
    if turns is not None:
        assert sum(pairs(samples).values()) == turns


def test_real_presence_questions_are_balanced() -> None:
    if not (DATA / "rsicd_128").is_dir():
        pytest.skip("no real data rsicd_128")
    asked = Counter(
        (q, a) for _, q, a in pairs(read("rsicd", DATA / "rsicd_128")).elements() if q.startswith("Is there a")
    )
    questions = {question for question, _ in asked}
    assert len(questions) >= 30
    assert len(questions) <= len(PRESENCE)
    assert all(asked[question, "yes"] == asked[question, "no"] for question in questions)


def test_real_labels() -> None:
    if not (DATA / "rsscn7").is_dir() or not (DATA / "rsicd_128").is_dir():
        pytest.skip("no real data rsscn7 or rsicd_128")
    assert Counter(name for _, name in labels("folder", DATA / "rsscn7", "all")) == {
        "aGrass": 13, "bField": 13, "cIndustry": 13, "dRiverLake": 13, "eForest": 13, "fResident": 13, "gParking": 13,
    }  # fmt: skip
    pairs_ = labels("rsicd", DATA / "rsicd_128", "test")
    assert len(pairs_) == 780
    assert all(path.is_file() and path.name.startswith(name) for path, name in pairs_)

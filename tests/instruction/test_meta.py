"""Released mixture files run as they are, and whatever is wrong with one is said with file, line and key."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.minidata import write_data, write_recipe
from typer.testing import CliRunner

from vitp.cli import app, main
from vitp.commands.pretrain import pretrain
from vitp.commands.pretrain_recipe import DataConfig, PretrainConfig, fingerprint
from vitp.config import dump
from vitp.errors import ConfigError, DataError
from vitp.instruction.meta import read_meta, to_yaml
from vitp.instruction.mixture import Mixture
from vitp.instruction.source import Source, SourceConfig
from vitp.recipes import load_recipe

RELEASED = {  # entries as they stand in the released files: both paths relative to the folder the scripts start in
    "geochat_train": {
        "root": "images/geochat/",
        "annotation": "annotations/geochat_train.jsonl",
        "data_augment": False,
        "max_dynamic_patch": 12,
        "repeat_time": 2,
        "length": 63883,
    },
    "cls_rgb_UCM": {
        "root": "images/vhm",
        "annotation": "annotations/cls_rgb_UCM.jsonl",
        "data_augment": True,
        "max_dynamic_patch": 12,
        "repeat_time": 5,
        "length": 2100,
    },
    "dvqa_train_200k": {
        "root": "",
        "annotation": "annotations/dvqa_train_200k.jsonl",
        "data_augment": False,
        "repeat_time": 0.01,
        "length": 200000,
        "force_image_size": 224,
    },
}


def write_meta(path: Path, entries: object) -> Path:
    path.write_text(json.dumps(entries, indent=2), encoding="utf-8")
    return path


def released_folder(folder: Path) -> Path:
    """A folder laid out as the released scripts expect it, with two small data sets and their mixture file."""
    for name, count in (("set_a", 6), ("set_b", 10)):
        annotations = write_data(folder / "images" / name, count)
        (folder / "annotations").mkdir(exist_ok=True)
        annotations.rename(folder / "annotations" / f"{name}.jsonl")
    shared = {"data_augment": False, "max_dynamic_patch": 2}
    entries = {
        "set_a": {
            "root": "images/set_a",
            "annotation": "annotations/set_a.jsonl",
            **shared,
            "repeat_time": 2,
            "length": 7,
        },
        "set_b": {"root": "images/set_b", "annotation": "annotations/set_b.jsonl", **shared, "repeat_time": 0.5},
    }
    return write_meta(folder / "ft_data.json", entries)


def recipe_without_sources(folder: Path, **data: object) -> Path:
    values: dict[str, object] = {"max_length": 256, **data}
    return write_recipe(folder, folder, folder / "out", steps=2, warm_start={"steps": 0}, data=values)


def test_entries_become_sources_in_their_order(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "ft_data_rs.json", RELEASED)
    sources = read_meta(path, tmp_path / "base")
    assert [s.name for s in sources] == list(RELEASED)
    assert [s.root for s in sources] == [tmp_path / "base" / p for p in ("images/geochat", "images/vhm", ".")]
    assert [s.annotations for s in sources] == [tmp_path / "base" / e["annotation"] for e in RELEASED.values()]  # type: ignore[operator]
    assert [(s.weight, s.max_tiles, s.augment.jpeg, s.samples) for s in sources] == [
        (2.0, 12, False, 63883),
        (5.0, 12, True, 2100),
        (0.01, None, False, 200000),
    ]
    assert not any(s.augment.flip or s.augment.rot90 for s in sources)


@pytest.mark.parametrize("rewrite", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"), None])
def test_layout_of_the_text_does_not_matter(tmp_path: Path, rewrite: Callable[[str], str] | None) -> None:
    expected = read_meta(write_meta(tmp_path / "plain.json", RELEASED))
    text = json.dumps(RELEASED, indent="\t") if rewrite is None else rewrite(json.dumps(RELEASED, indent=2))
    (tmp_path / "other.json").write_bytes(text.encode("utf-8"))
    other = read_meta(tmp_path / "other.json")
    assert [s.model_copy(update={"declared_in": None}) for s in other] == [
        s.model_copy(update={"declared_in": None}) for s in expected
    ]


@pytest.mark.parametrize("repeat", [0.005, 0.01, 0.1, 0.5, 1, 2, 10])
def test_as_many_samples_an_epoch_as_the_released_loader_takes(repeat: float) -> None:
    """The released loader cuts int(n r) lines off the front, or repeats all; ours rounds: one sample apart at most."""
    for length in (200, 1497, 63883, 920057):
        released = int(length * repeat) if repeat < 1 else length * int(repeat)
        assert abs(Mixture([length], [float(repeat)], 0).epoch_length - released) <= 1


def test_a_released_file_trains_as_the_same_sources_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released_folder(tmp_path)
    monkeypatch.chdir(tmp_path)  # where the released scripts are started: no base is needed
    recipe = recipe_without_sources(tmp_path)
    run = pretrain(recipe, ["data.meta=ft_data.json"])
    written: list[dict[str, Any]] = [
        {"name": name, "root": f"images/{name}", "annotations": str(tmp_path / f"annotations/{name}.jsonl")}
        for name in ("set_a", "set_b")
    ]
    for source, weight in zip(written, (2, 0.5), strict=True):
        source |= {"weight": weight, "max_tiles": 2}
    by_hand = tmp_path / "by_hand.yaml"
    recipe_without_sources(tmp_path, sources=written).rename(by_hand)
    other = pretrain(by_hand, ["out=other"])
    assert run.train.loss == other.train.loss
    assert run.train.step == 2
    saved = load_recipe(PretrainConfig, tmp_path / "out" / "recipe.yaml")
    assert [s.name for s in saved.data.sources] == ["set_a", "set_b"]
    (tmp_path / "ft_data.json").unlink()  # the run holds its mixture itself
    assert pretrain(tmp_path / "out" / "recipe.yaml", ["steps=2"], resume=True).train.step == 2


def test_overrides_reach_the_sources_wherever_they_stand(tmp_path: Path) -> None:
    meta = released_folder(tmp_path)
    recipe = recipe_without_sources(tmp_path)
    changes = ["data.sources.1.weight=3", f"data.base={tmp_path}", f"data.meta={meta}", "data.sources.0.tasks=[vqa]"]
    config = load_recipe(PretrainConfig, recipe, changes)
    assert [s.weight for s in config.data.sources] == [2.0, 3.0]
    assert config.data.sources[0].tasks == ("vqa",)
    assert config.data.sources[0].root == tmp_path / "images" / "set_a"
    with pytest.raises(ConfigError, match=r"data\.sources\.1\.wieght: unknown key; did you mean 'weight'"):
        load_recipe(PretrainConfig, recipe, [*changes, "data.sources.1.wieght=3"])
    more = [*changes, f"data.sources.2={{name: mine, root: '{tmp_path}'}}"]
    assert [s.name for s in load_recipe(PretrainConfig, recipe, more).data.sources] == ["set_a", "set_b", "mine"]


def test_a_meta_file_on_the_command_line_replaces_sources_and_in_a_recipe_it_may_not_stand_beside_them(
    tmp_path: Path,
) -> None:
    meta = released_folder(tmp_path)
    sources = [{"name": "mine", "root": str(tmp_path)}]
    config = load_recipe(PretrainConfig, recipe_without_sources(tmp_path, sources=sources), [f"data.meta={meta}"])
    assert [s.name for s in config.data.sources] == ["set_a", "set_b"]
    both = recipe_without_sources(tmp_path, sources=sources, meta=str(meta))
    with pytest.raises(ConfigError, match=r"recipe\.yaml:\d+: data\.meta: names the sources, and so does"):
        load_recipe(PretrainConfig, both)
    with pytest.raises(ValueError, match="names the sources, and so does"):
        DataConfig.model_validate({"sources": sources, "meta": str(meta)})
    direct = DataConfig.model_validate({"meta": meta, "base": tmp_path})
    assert [s.name for s in direct.sources] == ["set_a", "set_b"]


def test_base_is_joined_once_to_what_is_relative(tmp_path: Path) -> None:
    sources = [{"name": "a", "root": "sub"}, {"name": "b", "root": "/elsewhere"}]
    recipe = recipe_without_sources(tmp_path, sources=sources, base="there")
    config = load_recipe(PretrainConfig, recipe, ["data.base=/data"])
    assert [str(s.root) for s in config.data.sources] == ["/data/sub", "/elsewhere"]
    (tmp_path / "again.yaml").write_text(dump(config), encoding="utf-8")
    assert load_recipe(PretrainConfig, tmp_path / "again.yaml") == config
    relative = load_recipe(PretrainConfig, recipe)
    assert [str(s.root) for s in relative.data.sources] == ["there/sub", "/elsewhere"]
    objects = DataConfig(sources=[SourceConfig(name="a", root=Path("sub"))], base=Path("/data"))
    assert objects.sources[0].root == Path("/data/sub")
    for wrong in ("data.base=3", "data.meta=[a]", "data.meta=3"):
        with pytest.raises(ConfigError, match=rf"{wrong.split('=')[0]}: must be a path"):
            load_recipe(PretrainConfig, recipe, [wrong])


def test_moved_data_and_new_descriptions_are_the_same_run(tmp_path: Path) -> None:
    meta = released_folder(tmp_path / "one")
    recipe = recipe_without_sources(tmp_path)
    first = load_recipe(PretrainConfig, recipe, [f"data.meta={meta}", f"data.base={tmp_path / 'one'}"])
    before = fingerprint(first, [Source(s) for s in first.data.sources])
    (tmp_path / "one").rename(tmp_path / "two")
    changes = [f"data.meta={tmp_path / 'two/ft_data.json'}", f"data.base={tmp_path / 'two'}"]
    described = ["data.sources.0.licence=CC0", "data.sources.0.tasks=[vqa]", "data.sources.1.domain=general"]
    second = load_recipe(PretrainConfig, recipe, [*changes, *described])
    assert fingerprint(second, [Source(s) for s in second.data.sources]) == before
    third = load_recipe(PretrainConfig, recipe, [*changes, "data.sources.0.weight=3"])
    assert fingerprint(third, [Source(s) for s in third.data.sources]) != before


def test_the_yaml_of_a_mixture_file_is_the_same_mixture(tmp_path: Path) -> None:
    sources = read_meta(write_meta(tmp_path / "m.json", RELEASED), tmp_path)
    data = yaml.safe_load(to_yaml(sources))["data"]
    again = DataConfig.model_validate(data).sources
    below = [s.root / s.annotations for s in again if s.annotations is not None]
    assert below == [s.annotations for s in sources]
    for one, other in zip(again, sources, strict=True):
        assert one == other.model_copy(update={"declared_in": None, "annotations": one.annotations})


ENTRY = '"root": "r", "annotation": "a.jsonl"'
HOSTILE = {
    '{"a": {%s, "repeat_time": 0}}': r":1: a\.repeat_time: must be above 0, got 0; to leave the data set out, delete",
    '{"a": {%s, "repeat_time": -2}}': r"a\.repeat_time: must be above 0, got -2",
    '{"a": {%s, "repeat_time": NaN}}': r"a\.repeat_time: must be a finite number",
    '{"a": {%s, "repeat_time": "2"}}': r"a\.repeat_time: must be a number, got '2'; remove the quotes",
    '{"a": {%s, "repeat_time": true}}': r"a\.repeat_time: must be a number, got true",
    '{"a": {%s,\n "repaet_time": 2}}': r":2: a\.repaet_time: unknown key; did you mean 'repeat_time'",
    '{"a": {%s, "length": 12.5}}': r"a\.length: must be a whole number, got 12\.5",
    '{"a": {%s, "length": 0}}': r"a\.length: must be at least 1, got 0",
    '{"a": {%s, "max_dynamic_patch": 0}}': r"a\.max_dynamic_patch: must be at least 1",
    '{"a": {%s, "data_augment": "false"}}': r"a\.data_augment: must be true or false, got 'false'; remove the quotes",
    '{"a": {"root": "r"}}': r"a\.annotation: required key is missing",
    '{"a": {"annotation": "a.jsonl", "root": null}}': r"a\.root: must be a text, got null",
    '{"a": {"root": "s3://bucket/x", "annotation": "a"}}': r"a\.root: is an address \(s3://bucket/x\); copy the data",
    '{"a": {"root": "r\\u0000", "annotation": "a"}}': r"a\.root: holds a NUL character",
    '{"a": 3}': r"a: must be a mapping of keys to values, got 3",
    '{"a": {%s}, "a": {%s}}': r"a: this key was already given in line 1",
    '{"": {%s}}': r"a data set needs a name",
    "{}": r"holds an empty object; a mixture file maps names",
    "[1]": r"holds a list; a mixture file maps names",
    "3": r"holds a single value",
    "": r":1: not valid JSON: Expecting value",
    '{"a":\n {%s,}}': r":2: not valid JSON",
    '{"image": "x"}\n{"image": "y"}': r":2: not valid JSON: Extra data; a file of records is a source's 'annotations'",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_mistakes_name_file_line_and_key(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ft_data.json"
    path.write_text(text.replace("%s", ENTRY), encoding="utf-8")
    with pytest.raises(ConfigError, match=HOSTILE[text]) as caught:
        read_meta(path)
    assert str(caught.value).startswith(str(path))


def test_all_mistakes_are_named_at_once_and_unreadable_files_too(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "m.json", {"a": {"root": "r"}, "b": {**RELEASED["cls_rgb_UCM"], "repeat_time": 0}})
    with pytest.raises(ConfigError) as caught:
        read_meta(path)
    lines = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["a.annotation", "b.repeat_time"]
    (tmp_path / "latin.json").write_bytes(b'{"a\xe9": 1}')
    for name, said in (("none.json", "does not exist"), (".", "is a folder"), ("latin.json", "0xe9 is not UTF-8")):
        with pytest.raises(ConfigError, match=said):
            read_meta(tmp_path / name)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="nested too deeply|not valid JSON"):
        read_meta(tmp_path / "deep.json")


def test_missing_files_and_a_wrong_length_name_the_mixture_file(tmp_path: Path) -> None:
    meta = released_folder(tmp_path)
    entries = json.loads(meta.read_text())
    recipe = recipe_without_sources(tmp_path)
    changes = [f"data.meta={meta}", f"data.base={tmp_path}"]

    def refused(key: str, value: object) -> str:
        write_meta(meta, {**entries, "set_a": {**entries["set_a"], key: value}})
        with pytest.raises(DataError) as caught:
            pretrain(recipe, changes)
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    said = refused("length", 8)
    assert said.startswith(f"{meta}: set_a.length is 8, but {tmp_path / 'annotations/set_a.jsonl'} holds 7 records;")
    assert pretrain(recipe, [*changes, "data.sources.0.samples=null", f"out={tmp_path / 'b'}"]).train.step == 2
    assert f"source 'set_a' ({meta})" in refused("root", "images/set_z")
    said = refused("annotation", "annotations/set_z.jsonl")
    assert f"holds the annotations of source 'set_a' ({meta}) and does not exist; did you mean set_" in said


@pytest.mark.parametrize("command", ["pretrain", "check", "recipes"])
def test_the_command_line_says_it_and_exits_with_2(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = write_meta(tmp_path / "m.json", {"a": {"root": "r", "annotation": "a.jsonl", "repeat_time": 0}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vitp", command, "tiny_rsicd", f"data.meta={meta}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"{meta}:5: a.repeat_time: must be above 0" in said
    assert "Traceback" not in said


def test_a_mixture_file_is_printed_as_yaml(tmp_path: Path) -> None:
    meta = write_meta(tmp_path / "m.json", RELEASED)
    printed = CliRunner().invoke(app, ["recipes", "--from-meta", str(meta), "--base", "/data"])
    assert printed.exit_code == 0
    sources = yaml.safe_load(printed.output)["data"]["sources"]
    assert [s["name"] for s in sources] == list(RELEASED)
    assert sources[0]["root"] == "/data/images/geochat"

"""Recipes: every mistake is named with its line, overrides reach everywhere, and what is dumped loads back equal."""

from __future__ import annotations

import math
import os
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from vitp.config import Config, dump, load, save
from vitp.errors import ConfigError, OutputError


class Flavour(Enum):
    SWEET = "sweet"
    SOUR = "sour"


class FolderSource(Config):
    kind: Literal["folder"] = "folder"
    root: Path
    weight: float = Field(1.0, gt=0)
    labels: dict[int, str] = Field(default_factory=dict)


class JsonlSource(Config):
    kind: Literal["jsonl"] = "jsonl"
    files: tuple[Path, ...] = Field(min_length=1)
    weight: float = Field(1.0, gt=0)


Source = Annotated[FolderSource | JsonlSource, Field(discriminator="kind")]


class Data(Config):
    sources: tuple[Source, ...] = Field(min_length=1)
    shuffle: bool = True


class Vrl(Config):
    drop_ratio: float = Field(0.75, ge=0, lt=1)


class Optim(Config):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: int | float | Literal["auto"] = "auto"
    layers: tuple[int, ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Optim:
        if self.lr < 0:
            raise ValueError("lr cannot be negative; use 1e-4")
        return self


class Recipe(Config):
    data: Data
    name: str = "run"
    steps: int = Field(100, ge=1)
    out: Path | None = None
    vrl: Vrl | None = Vrl()
    optim: Optim = Optim(lr=5e-4)
    flavour: Flavour = Flavour.SWEET
    tags: frozenset[str] = frozenset()


GOOD = """\
# header
data:
  sources:
    - root: /pictures
      weight: 2
    - kind: jsonl
      files: [a.jsonl, b.jsonl]
steps: 10
"""
GOOD = GOOD.replace("- root", "- kind: folder\n      root")


def mistakes(tmp_path: Path, text: str, *overrides: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path, overrides)
    return str(caught.value).replace(str(path), "recipe.yaml").splitlines()


def good(tmp_path: Path, *overrides: str, text: str = GOOD) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load(Recipe, path, overrides)


def test_a_good_recipe_becomes_typed_values(tmp_path: Path) -> None:
    recipe = good(tmp_path)
    first, second = recipe.data.sources
    assert isinstance(first, FolderSource)
    assert first.root == Path("/pictures")
    assert first.weight == 2.0
    assert isinstance(first.weight, float)
    assert isinstance(second, JsonlSource)
    assert second.files == (Path("a.jsonl"), Path("b.jsonl"))
    with pytest.raises(ValidationError):
        recipe.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        (Recipe, "steps", "10"),
        (Recipe, "steps", True),
        (Recipe, "steps", 10.0),
        (Recipe, "name", 3),
        (Vrl, "drop_ratio", "0.5"),
        (Vrl, "drop_ratio", True),
        (Data, "shuffle", 1),
        (Data, "shuffle", "yes"),
        (Optim, "betas", ["0.9", 0.99]),
        (Optim, "layers", [1, True]),
        (FolderSource, "labels", {"0": "a"}),
    ],
)
def test_scalars_are_strict_at_any_depth(model: type[Config], key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        model(**{key: value})
    assert key in {error["loc"][0] for error in caught.value.errors()}


def test_bad_defaults_are_refused_when_built() -> None:
    class Broken(Config):
        rate: float = Field(2.0, lt=1)

    with pytest.raises(ValidationError):
        Broken()


def test_containers_and_paths_are_accepted_from_python_too() -> None:
    assert Optim(betas=[1, 0.5]).betas == (1.0, 0.5)  # type: ignore[arg-type]
    assert FolderSource(root="x").root == Path("x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("2.0e-5", 2e-5), ("5E+4", 5e4), (".5", 0.5), ("3", 3.0), ("-1.", -1.0), (".inf", math.inf)],
)
def test_numbers_in_every_usual_notation_are_floats(tmp_path: Path, text: str, value: float) -> None:
    class One(Config):
        lr: float

    (tmp_path / "r.yaml").write_text(f"lr: {text}\n")
    assert load(One, tmp_path / "r.yaml").lr == value
    assert load(One, None, [f"lr={text}"]).lr == value


@pytest.mark.parametrize("text", ["no", "on", "2024-01-01", "12:30:45", "1e", "v1.0", "'10'", "'true'", "1_2"])
def test_words_that_old_yaml_would_convert_stay_texts(tmp_path: Path, text: str) -> None:
    assert good(tmp_path, f"name={text}").name == text.strip("'")


def test_all_mistakes_are_listed_at_once_with_their_lines(tmp_path: Path) -> None:
    text = """\
data:
  sources:
    - kind: folder
      root: /pictures
      wieght: 2
    - kind: jsonl
      files: []
  shuffle: yes
steps: 0
vrl:
  drop_ratio: 1.2
optim:
  schedule: cosin
  betas: [0.9, high]
"""
    assert mistakes(tmp_path, text, "steps=-1", "nmae=x") == [
        "recipe.yaml:5: data.sources.0.wieght: unknown key; did you mean 'weight'?"
        " (keys here: kind, root, weight, labels)",
        "recipe.yaml:7: data.sources.1.files: must have at least 1 items, got []",
        "recipe.yaml:8: data.shuffle: must be true or false, got 'yes'",
        "recipe.yaml:11: vrl.drop_ratio: must be less than 1, got 1.2",
        "recipe.yaml:13: optim.schedule: must be 'cosine', 'linear' or 'constant', got 'cosin'; did you mean 'cosine'?",
        "recipe.yaml:14: optim.betas.1: must be a number, got 'high'",
        "command line: steps: must be at least 1, got -1",
        "command line: nmae: unknown key; did you mean 'name'?"
        " (keys here: data, name, steps, out, vrl, optim, flavour, tags)",
    ]


DATA = "data: {sources: [{kind: folder, root: x}]}\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\nsteps: 3\n", "2: data: required key is missing"),
        ("steps: 3\ndata:\n  shuffle: true\n", "2: data.sources: required key is missing"),
        ("data:\n  sources:\n  - kind: folder\n", "3: data.sources.0.root: required key is missing"),
        ("data:\n  sources:\n  - root: x\n", "3: data.sources.0: the key 'kind' is missing, which says what this is"),
        (
            "data:\n  sources:\n  - {kind: foldr, root: x}\n",
            "3: data.sources.0: 'kind' must be one of 'folder', 'jsonl', got 'foldr'; did you mean 'folder'?",
        ),
        (DATA + "steps: 1e2\n", "2: steps: must be a whole number, got 100.0; write 100"),
        (DATA + "steps: 1.5\n", "2: steps: must be a whole number, got 1.5"),
        (DATA + "steps: '7'\n", "2: steps: must be a whole number, got '7'; remove the quotes"),
        (DATA + "steps:\n", "2: steps: must be a whole number, got null"),
        (DATA + "name: 12\n", "2: name: must be a text, got 12; put it in quotes"),
        (DATA + "out: 3\n", "2: out: must be a path, got 3"),
        (DATA + "vrl: on\n", "2: vrl: must be a mapping of keys to values, got 'on'"),
        (DATA + "optim:\n  betas: 0.9\n", "3: optim.betas: must be a list, got 0.9"),
        (DATA + "optim:\n  betas: [0.9]\n", "3: optim.betas.1: required item is missing"),
        (DATA + "optim:\n  layers: [1, a]\n", "3: optim.layers.1: must be a whole number, got 'a'"),
        (
            DATA + "optim:\n  warmup: [1]\n",
            "3: optim.warmup: must be a whole number or a number or 'auto', got [1]",
        ),
        (DATA + "optim:\n  lr: -1e-3\n", "2: optim: lr cannot be negative; use 1e-4"),
        (DATA + "flavour: swet\n", "2: flavour: must be 'sweet' or 'sour', got 'swet'; did you mean 'sweet'?"),
        (
            "data: {sources: [{kind: folder, root: x, labels: {a: b}}]}",
            "1: data.sources.0.labels.a: must be a whole number, got 'a'",
        ),
        (DATA + "steps: 3\nname: a\nsteps: 4\n", "4: steps: this key was already given in line 2"),
        (
            DATA + "name: !!python/object:os.system x\n",
            "2: name: the tag 'tag:yaml.org,2002:python/object:os.system' is not supported; write a plain value",
        ),
    ],
)
def test_each_mistake_in_plain_words(tmp_path: Path, text: str, line: str) -> None:
    assert f"recipe.yaml:{line}" in mistakes(tmp_path, text)


def test_a_union_of_shapes_blames_the_shape_that_was_meant() -> None:
    class Crop(Config):
        size: tuple[int, int] | int

    with pytest.raises(ConfigError) as caught:
        load(Crop, None, ["size=[3, a]"])
    assert str(caught.value) == "command line: size.1: must be a whole number, got 'a'"
    with pytest.raises(ConfigError, match=r"size: must be a list or a whole number, got 'a'$"):
        load(Crop, None, ["size=a"])


def test_overrides_reach_mappings_lists_and_defaults(tmp_path: Path) -> None:
    recipe = good(
        tmp_path,
        "data.sources.0.weight=3",
        "data.sources.0.labels.7=water",
        "data.sources.1.files.2=c.jsonl",
        "data.sources.2={kind: jsonl, files: [d.jsonl]}",
        "data.sources.2.weight=0.5",
        "optim.betas.1=0.95",
        "vrl=null",
        "name='a=b'",
        "steps=3",
        "steps=4",
        "data.shuffle=false",
        "tags=[x, y]",
    )
    folder, jsonl, added = recipe.data.sources
    assert isinstance(folder, FolderSource)
    assert isinstance(jsonl, JsonlSource)
    assert folder.weight == 3
    assert folder.labels == {7: "water"}
    assert jsonl.files[2] == Path("c.jsonl")
    assert added == JsonlSource(files=(Path("d.jsonl"),), weight=0.5)
    assert recipe.optim == Optim(lr=5e-4, betas=(0.9, 0.95))  # the recipe's default of optim, but for betas
    assert recipe.vrl is None
    assert (recipe.name, recipe.steps, recipe.data.shuffle) == ("a=b", 4, False)
    assert recipe.tags == {"x", "y"}


def test_overrides_alone_make_a_recipe() -> None:
    recipe = load(Recipe, None, ["data.sources.0.kind=folder", "data.sources.0.root=x", "vrl.drop_ratio=0.5"])
    assert recipe == Recipe(data=Data(sources=(FolderSource(root=Path("x")),)), vrl=Vrl(drop_ratio=0.5))
    with pytest.raises(ConfigError, match=r"^command line: data: required key is missing$"):
        load(Recipe, None)


def test_an_override_replaces_null_and_forgets_the_lines_it_replaced(tmp_path: Path) -> None:
    text = GOOD + "vrl:\n"
    assert good(tmp_path, "vrl.drop_ratio=0.5", text=text).vrl == Vrl(drop_ratio=0.5)
    assert mistakes(tmp_path, GOOD, "data.sources.0={kind: folder}") == [
        "command line: data.sources.0.root: required key is missing"
    ]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.sorces.0.weight=2", "data.sorces: unknown key; did you mean 'sources'?"),
        ("data.sources.0.wheight=2", "data.sources.0.wheight: unknown key; did you mean 'weight'?"),
        ("data.sources.5.weight=2", "data.sources.5: this is a list of 2; give an index up to 2, which appends"),
        ("data.sources.-1.weight=2", "data.sources.-1: this is a list of 2; give an index up to 2, which appends"),
        ("data.sources.first.weight=2", "data.sources.first: this is a list of 2"),
        ("steps.more=2", "steps: is 10, so 'steps.more' cannot be set inside it"),
        ("steps", "an override looks like key.path=value, got 'steps'"),
        ("=3", "an override looks like key.path=value, got '=3'"),
        ("a..b=3", "an override looks like key.path=value, got 'a..b=3'"),
        ("name=", "'name=' has no value; write name=null or name=\"''\""),
        ("name=*.tif", "the value of 'name=*.tif' is not YAML; quote it twice"),
        ("name=[a", "the value of 'name=[a' is not YAML"),
    ],
)
def test_wrong_overrides_are_explained(tmp_path: Path, override: str, words: str) -> None:
    lines = mistakes(tmp_path, GOOD, override)
    assert len(lines) == 1
    assert lines[0].startswith(f"command line: {words}")


def test_merge_keys_and_anchors_work(tmp_path: Path) -> None:
    text = """\
data:
  sources:
    - &base {kind: folder, root: x, weight: 2}
    - <<: *base
      root: y
"""
    first, second = good(tmp_path, text=text).data.sources
    assert second == FolderSource(root=Path("y"), weight=2)
    assert first == FolderSource(root=Path("x"), weight=2)
    changed = good(tmp_path, "data.sources.0.weight=9", text=text)
    assert [source.weight for source in changed.data.sources] == [9, 2]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", " is empty; a recipe is a mapping"),
        (b"# only words\n", " is empty; a recipe is a mapping"),
        (b"- a\n", ":1: a recipe is a mapping of keys to values, found a list"),
        (b"\nhello\n", ":2: a recipe is a mapping of keys to values, found a single value"),
        (b"a: 1\nb: [1, 2\nc: 3\n", ":3: not valid YAML"),
        (b"a:\n\tb: 1\n", "; indent with spaces, not tabs"),
        (b"a: 1\n---\nb: 2\n", ":2: not valid YAML"),
        (b"a: 1\nname: caf\xe9\n", ":2: the byte 0xe9 is not UTF-8"),
        (b"a: 1\nb: \x01\n", ":2: the character"),
        (b"a: &a\n  b: *a\n", ": nested too deeply, or an alias contains itself"),
        (b"a: " + b"[" * 5000, ": nested too deeply, or an alias contains itself"),
    ],
)
def test_unreadable_recipes_are_explained(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(Recipe, path)
    assert str(path) + words in str(caught.value).replace("\n", " ") or str(caught.value).endswith(words)


def test_missing_recipes_name_their_neighbours(tmp_path: Path) -> None:
    (tmp_path / "pretrain.yaml").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"pretrian\.yaml does not exist; did you mean pretrain\.yaml\?$"):
        load(Recipe, tmp_path / "pretrian.yaml")
    with pytest.raises(ConfigError, match=r"in that folder are: pretrain\.yaml$"):
        load(Recipe, tmp_path / "zzz")
    with pytest.raises(ConfigError, match="neither does the folder"):
        load(Recipe, tmp_path / "nowhere" / "a.yaml")
    with pytest.raises(ConfigError, match=r"is a folder; name one recipe in it \(pretrain\.yaml\)$"):
        load(Recipe, tmp_path)


def test_a_packaged_recipe_is_found_only_when_there_is_no_such_file(tmp_path: Path) -> None:
    packaged = tmp_path / "packaged.yaml"
    packaged.write_text(GOOD)
    asked: list[str] = []

    def find(name: str) -> Path | None:
        asked.append(name)
        return packaged if name == "tiny" else None

    assert load(Recipe, "tiny", find=find).steps == 10
    own = tmp_path / "own.yaml"
    own.write_text(GOOD.replace("10", "11"))
    assert load(Recipe, own, find=find).steps == 11
    assert asked == ["tiny"]
    with pytest.raises(ConfigError, match=r"tinny does not exist"):
        load(Recipe, "tinny", find=find)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load(Recipe, path).steps == 10


texts = st.text(max_size=12) | st.sampled_from(["1e-3", "null", "no", "true", "0x1F", "2024-01-01", "<<", "1_000", ""])
floats = st.floats(allow_nan=False)
paths = st.builds(Path, st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8))
folders = st.builds(
    FolderSource, root=paths, weight=floats.filter(lambda x: x > 0), labels=st.dictionaries(st.integers(), texts)
)
jsonls = st.builds(JsonlSource, files=st.lists(paths, min_size=1, max_size=3))
recipes = st.builds(
    Recipe,
    data=st.builds(Data, sources=st.lists(folders | jsonls, min_size=1, max_size=3), shuffle=st.booleans()),
    name=texts,
    steps=st.integers(min_value=1),
    out=st.none() | paths,
    vrl=st.none() | st.builds(Vrl, drop_ratio=st.floats(0, 0.99)),
    optim=st.builds(
        Optim,
        lr=floats.filter(lambda x: x >= 0),
        betas=st.tuples(floats, floats),
        schedule=st.sampled_from(["cosine", "linear"]),
        warmup=st.integers() | floats | st.just("auto"),
        layers=st.none() | st.lists(st.integers(), max_size=4),
    ),
    flavour=st.sampled_from(Flavour),
    tags=st.frozensets(texts, max_size=3),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes)
def test_what_is_dumped_loads_back_equal(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(dump(recipe), encoding="utf-8", newline="")
    again = load(Recipe, path)
    assert again == recipe
    assert type(again.optim.warmup) is type(recipe.optim.warmup)


def test_dump_keeps_the_order_of_declaration_and_is_readable() -> None:
    recipe = Recipe(data=Data(sources=(FolderSource(root=Path("a b")),)), optim=Optim(layers=(1, 2)))
    assert dump(recipe) == (
        "data:\n  sources:\n  - kind: folder\n    root: a b\n    weight: 1.0\n    labels: {}\n  shuffle: true\n"
        "name: run\nsteps: 100\nout: null\nvrl:\n  drop_ratio: 0.75\n"
        "optim:\n  lr: 0.001\n  betas: [0.9, 0.999]\n  schedule: cosine\n  warmup: auto\n  layers: [1, 2]\n"
        "flavour: sweet\ntags: []\n"
    )


def test_save_replaces_the_file_or_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "recipe.yaml"
    save(Vrl(drop_ratio=0.25), path)
    assert load(Vrl, path) == Vrl(drop_ratio=0.25)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="no space left to write"):
        save(Vrl(drop_ratio=0.5), path)
    assert load(Vrl, path) == Vrl(drop_ratio=0.25)
    assert [item.name for item in path.parent.iterdir()] == ["recipe.yaml"]

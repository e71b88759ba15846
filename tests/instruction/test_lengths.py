"""How long samples are: what the check says is what training does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitp.commands.check import check
from vitp.commands.pretrain import build_task, recipe_tokenizer
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import DataError
from vitp.instruction.chat import ChatFormat
from vitp.instruction.check import CheckOptions, check_sources
from vitp.instruction.index import SizeRules
from vitp.instruction.lengths import LengthRule
from vitp.instruction.sample import Sample, Turn
from vitp.instruction.source import Source
from vitp.instruction.tiling import TilingConfig
from vitp.recipes import load_recipe
from vitp.vlm.tokenizer import build_tokenizer

MAX_LENGTH = 160


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PretrainConfig:
    """Samples of all lengths around the limit: with up to three images of all shapes, one to three turns."""
    root = tmp_path_factory.mktemp("lengths")
    rng = np.random.default_rng(0)
    shapes = [(32, 32), (32, 100), (100, 32), (64, 64), (300, 40)]
    for i, (width, height) in enumerate(shapes):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(root / f"{i}.png")
    lines = []
    for i in range(120):
        images = [f"{j}.png" for j in rng.integers(0, len(shapes), rng.integers(0, 4)).tolist()]
        turns = []
        for k in range(int(rng.integers(1, 4))):
            question = ("<image>" * len(images) if k == 0 else "") + "é?" * int(rng.integers(1, 120 if k == 0 else 30))
            answer = " ".join(map(str, rng.integers(0, 9, rng.integers(1, 60)).tolist()))
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        system = {"system": "Be brief."} if i % 5 == 0 else {}
        lines.append(json.dumps({"images": images, "conversations": turns, **system}))
    (root / "all.jsonl").write_text("\n".join(lines))
    return load_recipe(PretrainConfig, write(root, [{"name": "a", "root": str(root), "annotations": "all.jsonl"},
        {"name": "b", "root": str(root), "annotations": "all.jsonl", "max_tiles": 1}]))  # fmt: skip


def write(root: Path, sources: list[dict[str, object]]) -> Path:
    recipe = {
        "name": "lengths", "steps": 1,
        "model": {
            "tower": {"architecture": "vit_tiny_patch16_224", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1,
                      "heads": 3},
            "pixel_shuffle": 2,
            "language_model": {"width": 32, "depth": 1, "heads": 4, "kv_heads": 2, "mlp_width": 48, "vocabulary": 300},
        },
        "data": {"max_length": MAX_LENGTH, "tiling": {"max_tiles": 5}, "sources": sources},
    }  # fmt: skip
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    return root / "recipe.yaml"


def test_fates_are_those_of_training(config: PretrainConfig) -> None:
    sources = [Source(s) for s in config.data.sources]
    builder = build_task(config, sources, recipe_tokenizer(config, sources)).builder
    fates: dict[tuple[int, int], str] = {}
    for number, source in enumerate(sources):
        for index in range(len(source)):
            try:
                laid = builder.sample(source, index, 0, 0, text_only=False)
                fates[number, index] = "truncated" if laid.truncated else "whole"
            except DataError:
                fates[number, index] = "dropped"
    counted = {fate: list(fates.values()).count(fate) for fate in ("whole", "truncated", "dropped")}
    assert min(counted.values()) >= 10, counted
    report = check(config)
    told = {(("a", "b").index(f.source), f.sample): f.code.removeprefix("length-")
            for f in report.findings if f.code.startswith("length-")}  # fmt: skip
    assert told == {place: fate for place, fate in fates.items() if fate != "whole"}
    assert report.bad == {place for place, fate in fates.items() if fate == "dropped"}
    assert report.length_shares() == (240, counted["truncated"], counted["dropped"])
    for stats in report.sources:
        assert stats.tokens is not None
        assert stats.tokens.quantiles["min"] < MAX_LENGTH < stats.tokens.quantiles["max"]


def test_what_is_not_counted_fits() -> None:
    """The bound by bytes may never call a long sample whole."""
    chat = ChatFormat(build_tokenizer(["how many ships"] * 30, 400))
    rng = np.random.default_rng(1)
    alphabet = np.array(list("abc é東 €😀\n<>[]0123456789"))
    for _ in range(300):
        turns = []
        for k in range(int(rng.integers(1, 5))):
            question, answer = ("".join(rng.choice(alphabet, rng.integers(1, 60))) for _ in range(2))
            turns += [Turn("user", ("<image>" if k == 0 else "") + question), Turn("assistant", answer)]
        if rng.random() < 0.3:
            turns = [Turn("system", "You are brief."), *turns]
        sample = Sample(tuple(turns), ("x.png",), "a:1")
        limit = int(rng.integers(60, 500))
        rule = LengthRule(SizeRules(chat, TilingConfig(), tile_size=32, tokens_per_tile=4, max_length=limit))
        quick = rule.measure(sample, [(90, 40)], None, exact=False)
        exact = rule.measure(sample, [(90, 40)], None, exact=True)
        assert quick.fate == exact.fate
        assert quick.tokens in (None, exact.tokens)


def test_without_lengths_nothing_is_said_of_them(config: PretrainConfig) -> None:
    report = check(config, lengths=False)
    assert all(stats.tokens is None for stats in report.sources)
    assert not [f for f in report.findings if f.code.startswith("length-")]


def test_a_tokenizer_that_is_not_there_is_said_and_stops_nothing(config: PretrainConfig, tmp_path: Path) -> None:
    language = config.model.language_model.model_copy(update={"path": str(tmp_path)})
    model = config.model.model_copy(update={"language_model": language})
    report = check(config.model_copy(update={"model": model}))
    (note,) = report.notes
    assert note.startswith("tokens were not counted: ")
    assert note in report.lines()
    assert all(stats.tokens is None for stats in report.sources)


def test_lengths_do_not_depend_on_the_workers(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitp.instruction.check._CHUNK", 50)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    sources = [Source(s) for s in config.data.sources]
    chat = ChatFormat(recipe_tokenizer(config, sources))
    rule = LengthRule(SizeRules(chat, config.data.tiling, tile_size=32, tokens_per_tile=4, max_length=MAX_LENGTH))
    options = CheckOptions(lengths=rule, near_duplicates=True)
    assert check_sources(sources, options, workers=2) == check_sources(sources, options)

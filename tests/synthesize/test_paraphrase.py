"""Rewording by a language model: what is taken is recorded, what is refused leaves no trace, and nothing depends on batches."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.synthesize.labelsets import coco_document, run, write_coco

from vitp.cli import main
from vitp.commands.synthesize import SynthesizeConfig, SynthesizeResult, synthesize
from vitp.demo.keys import Dice
from vitp.errors import CheckpointError, MissingExtraError
from vitp.instruction.check import check_sources
from vitp.instruction.source import Source, SourceConfig
from vitp.synthesis import paraphrase
from vitp.synthesis.guard import REASONS, is_fixed
from vitp.synthesis.paraphrase import ParaphraseConfig, Progress, Wanted, choose, find_model, load_rewriter, tidy
from vitp.vlm.tiny import LanguageModelConfig, build_language_model
from vitp.vlm.tokenizer import build_tokenizer

TEXTS = [
    *(Wanted(f"How many {noun} are there in the image?", "question") for noun in ("ships", "harbors", "storage tanks")),
    Wanted("Count the ships.", "question"),
    Wanted("What does the image show?", "question"),
    Wanted("An image with three ships.", "caption"),
    Wanted("What does the image show?", "caption"),
]


class Stub:
    """Rewords by a function; remembers what it was given."""

    name = "stub"

    def __init__(self, rule: Callable[[Wanted], str]) -> None:
        self.rule = rule
        self.given: list[Wanted] = []

    def reword(self, texts: Sequence[Wanted], progress: Progress | None = None) -> list[str]:
        self.given += texts
        return [self.rule(wanted) for wanted in texts]


def picture(wanted: Wanted) -> str:
    """A good rewording wherever the image is named."""
    return wanted.text.replace("image", "picture")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), coco_document(24))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with random weights in transformers' layout."""
    folder = tmp_path_factory.mktemp("models") / "random-qwen2"
    tokenizer = build_tokenizer([wanted.text for wanted in TEXTS] * 3, 320)
    language = build_language_model(LanguageModelConfig(width=32, depth=1, heads=2, mlp_width=32), len(tokenizer), 0)
    language.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return folder


def made(root: Path, out: Path, stub: Stub | None, **keys: Any) -> tuple[SynthesizeResult, list[dict[str, Any]]]:
    settings = ParaphraseConfig(model=Path("models/stub"), **keys)
    result = synthesize(SynthesizeConfig(root=root, out=out, paraphrase=settings), rewriter=stub)
    return result, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def restored(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it was before rewording."""
    note = record.pop("reworded", {"turns": []})
    for turn in note["turns"]:
        record["conversations"][turn["turn"]]["value"] = turn["was"]
    return record


# ------------------------------------------------------------------------------------------------- with a rewriter of ours


def test_good_rewordings_are_taken_recorded_and_pass_the_check(root: Path, tmp_path: Path) -> None:
    _, plain = run(root, tmp_path / "plain.jsonl")
    stub = Stub(picture)
    result, records = made(root, tmp_path / "o.jsonl", stub, share=1.0, captions=True)
    told = result.reworded
    assert told is not None
    assert 0 < told.taken < told.texts == len(stub.given) == len(set(stub.given))
    assert told.taken + sum(told.refused.values()) == told.texts
    assert set(told.refused) == {"the same words"}
    changed = [(r, t) for r in records if "reworded" in r for t in r["reworded"]["turns"]]
    assert told.turns == len(changed) > 30
    for record, turn in changed:
        value = record["conversations"][turn["turn"]]["value"]
        assert record["reworded"]["model"] == "stub"
        assert value == turn["was"].replace("image", "picture").replace("<picture>", "<image>") != turn["was"]
    assert any(t["turn"] == 0 and t["was"].startswith("<image>\n") for _, t in changed)
    assert any(t["turn"] % 2 for _, t in changed), "no caption was reworded"
    assert [restored(r) for r in records] == plain
    report = check_sources([Source(SourceConfig(name="made", root=root, annotations=tmp_path / "o.jsonl"))])
    assert report.count("error") == 0, report.lines()
    assert "reworded by stub" in "\n".join(result.lines())
    assert json.loads(json.dumps(result.to_json()))["reworded"]["taken"] == told.taken


def test_texts_of_a_fixed_form_are_never_given_away(root: Path, tmp_path: Path) -> None:
    stub = Stub(picture)
    result, records = made(root, tmp_path / "o.jsonl", stub, share=1.0)
    assert stub.given
    assert not any(is_fixed(wanted.text) for wanted in stub.given)
    assert {wanted.kind for wanted in stub.given} == {"question"}
    for record in records:
        for turn in record.get("reworded", {"turns": []})["turns"]:
            task = record["tasks"][turn["turn"] // 2]
            assert task in ("caption", "count", "presence", "compare", "position", "relation")
    assert result.reworded is not None
    assert result.reworded.untouched == 0 or result.reworded.untouched < result.turns


BAD: dict[str, Callable[[str], str]] = {
    "nothing whole came back": lambda text: "",
    "not one clean line": lambda text: f"{text}\n{text}",
    "a placeholder": lambda text: f"... {text}",
    "talk about the task": lambda text: f"Sure: {text}",
    "the same words": str.upper,
    "much longer or shorter": lambda text: f"{text} {text} {text}",
    "other class names": lambda text: f"{text[:-1]} ship{text[-1]}",
    "other numbers": lambda text: f"{text[:-1]} 7{text[-1]}",
    "other places": lambda text: f"{text[:-1]} above{text[-1]}",
    "other comparisons": lambda text: f"{text[:-1]} larger{text[-1]}",
    "other amounts or negations": lambda text: f"{text[:-1]} not{text[-1]}",
    "a word invented": lambda text: f"{text[:-1]} today{text[-1]}",
}


@pytest.mark.parametrize("why", BAD)
def test_bad_rewordings_leave_the_file_as_it_would_be_without(root: Path, tmp_path: Path, why: str) -> None:
    run(root, tmp_path / "plain.jsonl", limit=8)
    settings = ParaphraseConfig(model=Path("m"), share=1.0, captions=True)
    config = SynthesizeConfig(root=root, out=tmp_path / "o.jsonl", limit=8, paraphrase=settings)
    told = synthesize(config, rewriter=Stub(lambda wanted: BAD[why](wanted.text))).reworded
    assert told is not None
    assert (told.taken, told.turns) == (0, 0)
    assert told.refused[why] > 0.5 * told.texts, told.refused
    assert set(told.refused) <= {*REASONS, "nothing whole came back"}
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_the_share_is_kept_and_a_smaller_one_is_part_of_a_larger(root: Path, tmp_path: Path) -> None:
    def turns(share: float) -> set[tuple[str, int]]:
        _, records = made(root, tmp_path / f"{share}.jsonl", Stub(picture), share=share)
        return {(r["id"], t["turn"]) for r in records if "reworded" in r for t in r["reworded"]["turns"]}

    some, whole = turns(0.4), turns(1.0)
    assert some < whole
    assert 0.2 < len(some) / len(whole) < 0.6


def test_a_record_is_reworded_alike_when_other_images_are_gone(root: Path, tmp_path: Path) -> None:
    _, records = made(root, tmp_path / "all.jsonl", Stub(picture))
    config = ParaphraseConfig(model=Path("m"))
    _, few = run_with(root, tmp_path / "few.jsonl", config, limit=5)
    assert few == records[:5]


def run_with(
    root: Path, out: Path, config: ParaphraseConfig, **keys: Any
) -> tuple[SynthesizeResult, list[dict[str, Any]]]:
    result = synthesize(SynthesizeConfig(root=root, out=out, paraphrase=config, **keys), rewriter=Stub(picture))
    return result, [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_a_rewriter_that_fails_leaves_the_older_file(root: Path, tmp_path: Path) -> None:
    def fail(wanted: Wanted) -> str:
        raise CheckpointError("broken")

    out = tmp_path / "o.jsonl"
    out.write_text("mine\n")
    settings = ParaphraseConfig(model=Path("m"))
    with pytest.raises(CheckpointError, match="broken"):
        synthesize(SynthesizeConfig(root=root, out=out, overwrite=True, paraphrase=settings), rewriter=Stub(fail))
    assert out.read_text() == "mine\n"
    assert [path.name for path in tmp_path.iterdir()] == ["o.jsonl"]


# -------------------------------------------------------------------------------------------------- the language model


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_rewording_depends_on_seed_and_text_alone(model: Path, temperature: float) -> None:
    def rewordings(batch_size: int, texts: Sequence[Wanted], seed: int = 0) -> dict[Wanted, str]:
        tokens = 96 if temperature else 12
        config = ParaphraseConfig(model=model, batch_size=batch_size, temperature=temperature, max_new_tokens=tokens)
        return dict(zip(texts, load_rewriter(config, seed).reword(texts), strict=True))

    alone = rewordings(1, TEXTS)
    assert rewordings(16, TEXTS) == alone
    assert rewordings(3, TEXTS[::-1]) == alone
    assert rewordings(2, TEXTS[2:5]) == {wanted: alone[wanted] for wanted in TEXTS[2:5]}
    if temperature:
        assert sum(map(bool, alone.values())) >= 2, "all were cut off, so nothing was compared"
        assert len(set(alone.values()) - {""}) >= 2
        assert rewordings(16, TEXTS, seed=1) != alone


def test_sampling_is_that_of_a_loop_without_padding_and_cache(model: Path) -> None:
    """Recompute every step of every text from the whole prefix, alone."""
    config = ParaphraseConfig(model=model, temperature=1.0, max_new_tokens=40)
    rewriter = load_rewriter(config, 5)
    tokenizer, language = rewriter._tokenizer, rewriter._model
    drawn: list[list[int]] = []
    original = language.generate

    def generate(**keys: Any) -> Any:
        out = original(**keys)
        drawn.extend(out[:, keys["input_ids"].shape[1] :].tolist())
        return out

    language.generate = generate
    rewriter.reword(TEXTS)
    expected = []
    for wanted in TEXTS:
        ids = tokenizer(rewriter._prompt(wanted), add_special_tokens=False)["input_ids"]
        dice = [Dice(5, paraphrase._key(wanted), paraphrase._STREAM)]
        new: list[int] = []
        while len(new) < 40 and not (new and (new[-1] in rewriter._ends or "\n" in tokenizer.decode(new).lstrip())):
            with torch.no_grad():
                logits = language(input_ids=torch.tensor([[*ids, *new]])).logits[:, -1]
            new.append(int(choose(logits, dice, 1.0)))
        expected.append(new)
    pad = tokenizer.pad_token_id
    cut = [[*row[: len(new)]] for row, new in zip(sorted(drawn), sorted(expected), strict=True)]
    assert cut == sorted(expected)
    assert all(set(row[len(new) :]) <= {pad} for row, new in zip(sorted(drawn), sorted(expected), strict=True))


def test_tokens_are_drawn_in_proportion_and_unlikely_ones_never() -> None:
    shares = np.array([0.5, 0.3, 0.18, 0.02])
    logits = torch.tensor(np.log(shares), dtype=torch.float32).expand(4000, 4)
    chosen = choose(logits, [Dice(0, i, 1) for i in range(4000)], 1.0)
    counts = np.bincount(chosen.numpy(), minlength=4)
    assert counts[3] == 0
    assert np.abs(counts[:3] / 4000 - shares[:3] / shares[:3].sum()).max() < 0.03
    sharp = choose(logits, [Dice(0, i, 1) for i in range(4000)], 0.5)
    assert np.bincount(sharp.numpy(), minlength=4)[0] > counts[0]
    assert choose(logits, [], 0.0).eq(0).all()


def test_garbage_is_refused_and_the_file_is_the_plain_one(root: Path, model: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "plain.jsonl", limit=6)
    seen: list[tuple[int, int]] = []
    settings = ParaphraseConfig(model=model, temperature=1.0, max_new_tokens=12)
    config = SynthesizeConfig(root=root, out=tmp_path / "o.jsonl", limit=6, paraphrase=settings)
    result = synthesize(config, rewording=lambda done, total: seen.append((done, total)))
    assert result.reworded is not None
    assert (result.reworded.taken, result.reworded.model) == (0, "random-qwen2")
    assert sum(result.reworded.refused.values()) == result.reworded.texts == seen[-1][0] == seen[-1][1] > 0
    assert (tmp_path / "o.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_a_model_without_a_chat_template_continues_a_plain_prompt(model: Path, tmp_path: Path) -> None:
    rewriter = load_rewriter(ParaphraseConfig(model=model, max_new_tokens=2), 0)
    with_template = rewriter._prompt(TEXTS[0])
    rewriter._tokenizer.chat_template = None
    plain = rewriter._prompt(TEXTS[0])
    assert "<|im_start|>" in with_template
    assert "<|im_start|>" not in plain
    assert plain.endswith("Other words:")
    assert with_template.endswith("Other words:")
    assert len(rewriter.reword(TEXTS)) == len(TEXTS)


@pytest.mark.parametrize(
    ("text", "tidied"),
    [(' "A ship." ', "A ship."), ("'A'", "A"), ("“A ship”", "A ship"), ('A "ship"', 'A "ship"'), ('"', '"')],
)
def test_quotation_marks_around_a_rewording_go(text: str, tidied: str) -> None:
    assert tidy(text) == tidied


# --------------------------------------------------------------------------------------------------------------- mistakes


def told(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["vitp", "synthesize", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_wrong_models_are_one_sentence_and_nothing_is_written(
    root: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o.jsonl"
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((model / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (damaged / name).write_bytes((model / name).read_bytes())
    (damaged / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{broken}")
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("nowhere", "nowhere does not exist: paraphrase.model must name a local folder"),
        ("model.bin", "model.bin is a file"),
        ("empty", "empty is no folder with a config.json"),
        ("damaged", "damaged: no causal language model can be loaded"),
    ):
        message = told([str(root), str(out), f"paraphrase.model={tmp_path / place}"], monkeypatch, capsys)
        assert said in " ".join(message.split()), message
        assert not out.exists()
    for override in ("paraphrase.share=0", "paraphrase.temprature=1", "paraphrase.share=0.5"):
        assert "paraphrase" in told([str(root), str(out), override], monkeypatch, capsys)


def test_a_gguf_file_without_its_reader_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(20))
    monkeypatch.setattr(paraphrase, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs gguf; install it with: pip install 'vitp\[gguf\]'"):
        find_model(path)
    monkeypatch.setattr(paraphrase, "find_spec", lambda name: object())
    assert find_model(path) == (tmp_path, "model.gguf")
    path.write_bytes(b"<html>not found</html>      ")
    with pytest.raises(CheckpointError, match="no whole GGUF file"):
        find_model(path)

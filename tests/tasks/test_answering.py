"""Evaluating while training: it measures what it says, and changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.minidata import write_data, write_recipe
from tests.tinyvlm import VOCABULARY, laid_out_sample, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from vitp.commands.pretrain import build_task, pretrain, recipe_tokenizer
from vitp.commands.pretrain_recipe import PretrainConfig, fingerprint
from vitp.config import load
from vitp.errors import CheckpointError, ConfigError, DataError
from vitp.instruction.grammar import print_boxes
from vitp.instruction.pack import join
from vitp.tasks.answering import Evaluator, evaluate_source, prompt_of, without_chance
from vitp.tasks.questions import choose_questions
from vitp.train.checkpoint import list_checkpoints, load_tensors
from vitp.train.evaluating import evaluating
from vitp.train.trackers import read_evaluations, read_log
from vitp.vlm.attention import use_packed_attention
from vitp.vlm.generate import _decode
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.token_drop import TokenDropConfig


def write_places(root: Path, count: int = 12) -> None:
    """Pictures with a light square in a corner, and questions where it is."""
    (root / "images").mkdir(parents=True)
    lines = []
    for i in range(count):
        x, y = 16 * (i % 2), 16 * (i // 2 % 2)
        pixels = np.full((32, 32, 3), 40, np.uint8)
        pixels[y : y + 16, x : x + 16] = 220
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        box = print_boxes("square", [(x * 1000 // 32, y * 1000 // 32, (x + 16) * 1000 // 32, (y + 16) * 1000 // 32)])
        turns = [{"from": "human", "value": "Where is the square?"}, {"from": "gpt", "value": box}]
        lines.append(json.dumps({"image": f"images/{i}.png", "conversations": turns}))
    (root / "places.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder / "mini")
    write_places(folder / "places")
    return folder


def places(data: Path, **changes: Any) -> dict[str, Any]:
    """An evaluation of the boxes, which are not trained on."""
    own = {"name": "places", "root": str(data / "places"), "annotations": "places.jsonl"}
    return {"sources": [own], "every": 3, "samples": 5, "max_new_tokens": 8, **changes}


def recipe(folder: Path, data: Path, **changes: Any) -> Path:
    return write_recipe(folder, data / "mini", folder / "out", **changes)


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = list_checkpoints(run)[-1]
    return {f"{name}:{k}": v for name in ("model", "optimizer")
            for k, v in load_tensors(newest / f"{name}.safetensors").items()}  # fmt: skip


def test_evaluating_changes_no_weight_and_no_training_loss(data: Path, tmp_path: Path) -> None:
    settings: dict[str, dict[str, Any]] = {
        "none": {},
        "often": {"evaluation": places(data, every=1, batch_size=3)},
        "dropping": {"evaluation": places(data, every=2, vrl={"preset": "paper"}, at_start=False)},
    }
    runs = {}
    for name, changes in settings.items():
        (tmp_path / name).mkdir()
        runs[name] = pretrain(recipe(tmp_path / name, data, **changes)).out
    plain, losses = weights(runs["none"]), [(x["step"], x["loss"]) for x in read_log(runs["none"])]
    for name in ("often", "dropping"):
        other = weights(runs[name])
        assert plain.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in plain.items()), name
        assert [(x["step"], x["loss"]) for x in read_log(runs[name])] == losses
    assert [line["step"] for line in read_evaluations(runs["often"])] == list(range(9))
    assert [line["step"] for line in read_evaluations(runs["dropping"])] == [2, 4, 6, 8]
    assert read_evaluations(runs["none"]) == []
    assert (runs["none"] / "report.html").is_file()


def test_the_mode_of_every_module_and_the_generators_are_put_back() -> None:
    model = tiny_model()
    model.train()
    model.tower.eval()  # as a frozen part may be
    before = {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        torch.rand(3)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        1 / 0  # noqa: B018
    assert {name: module.training for name, module in model.named_modules()} == before


def with_decoder(kind: str) -> VisionLanguageModel:
    """The tiny model, its language model of another family."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    model = tiny_model(seed=2)
    if kind == "llama":
        model.language_model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    elif kind == "qwen3":
        model.language_model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    use_packed_attention(model.language_model)
    return model.eval()


@pytest.mark.parametrize(("kind", "r"), [("qwen2", 0.0), ("qwen2", 0.75), ("llama", 0.5), ("qwen3", 0.5)])
def test_answers_written_together_are_those_of_the_whole_model_run_anew_for_every_token(kind: str, r: float) -> None:
    """Prompts of different lengths, with and without pictures and dropped tokens, in one batch."""
    model = with_decoder(kind)
    laid = [laid_out_sample(tiles, seed, r) for seed, tiles in enumerate((0, 1, 3, 1, 2))]
    prompts = [prompt_of(sample, seed % 2) for seed, sample in enumerate(laid)]
    assert all(prompt is not None for prompt in prompts)
    new, end = 6, -1

    def slowly(prompt: Any) -> list[int]:
        ids, positions, found = prompt.ids, prompt.positions, []
        for _ in range(new):
            sample = replace(
                laid[0], tiles=prompt.tiles, depth=np.zeros((len(prompt.tiles), 4), np.float32), ids=ids,
                positions=positions, slots=prompt.slots, kept=prompt.kept,
            )  # fmt: skip
            pack = join([sample], model.tokens_per_tile, model.image_size, 4)
            states = model.hidden(pack)[-1]
            token = int(model.language_model.get_output_embeddings()(states).argmax())
            found.append(token)
            ids, positions = np.append(ids, token), np.append(positions, positions[-1] + 1)
        return found

    with torch.no_grad():
        expected = [slowly(prompt) for prompt in prompts]
        assert _decode(model, prompts, end, new) == expected
        assert [_decode(model, [prompt], end, new)[0] for prompt in prompts] == expected
        stop = expected[2][3]
        cut = _decode(model, prompts, stop, new)
    assert cut[2] == expected[2][: expected[2].index(stop)]  # the end of an answer is not part of it
    assert cut[0] == (expected[0][: expected[0].index(stop)] if stop in expected[0] else expected[0])


def evaluated(data: Path, folder: Path, **changes: Any) -> tuple[PretrainConfig, Any, list[Any]]:
    config = load(PretrainConfig, recipe(folder, data, evaluation=places(data), **changes))
    sources = config.data.open_sources()
    task = build_task(config, sources, recipe_tokenizer(config, sources))
    return config, task, config.evaluation.open_sources(config.data.sources, config.data.index)


def test_the_loss_is_the_models_own_on_the_samples_as_they_are(data: Path, tmp_path: Path) -> None:
    config, task, held = evaluated(data, tmp_path)
    builder = without_chance(task.builder, held, TokenDropConfig(preset="none"))
    asked = choose_questions(builder.sources[0], 5)
    with evaluating(task.model):
        result = evaluate_source(task.model, builder, builder.sources[0], asked, config.evaluation)
        total = weight = 0.0
        for item in asked:
            laid = builder.sample(builder.sources[0], item.index, 0, 0, text_only=False)
            assert len(laid.kept) == laid.visual == 16
            total += float(task.model(join([laid], 16, 32, len(task.model.depth_modules))))
            weight += float(laid.weights.sum())
    assert result.loss == pytest.approx(total / weight, rel=1e-5)
    assert len(result.answered) == 5
    assert task.builder.vrl == config.vrl  # training's builder is as it was
    assert task.builder.sources[0].config.augment.flip
    prompt = prompt_of(laid, 0)
    assert prompt is not None
    text = task.builder.chat.tokenizer.decode(prompt.ids)
    assert text.endswith("assistant\n")
    assert "square?" in text
    assert prompt_of(laid, 1) is None


def test_held_out_pictures_are_never_trained_on_and_each_evaluation_shows_where_it_should(
    data: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    seen: list[dict[str, float]] = []

    class Watching:
        def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
            seen.append(logs)

        say = staticmethod(said.append)

    write_data(tmp_path / "mini")
    file = recipe(
        tmp_path, tmp_path, steps=12, evaluation={"hold_out": 5, "every": 7, "shown": 3}, warm_start={"steps": 0}
    )
    first = pretrain(file, say=said.append, progress=Watching())
    out = first.out
    log = read_evaluations(out)
    assert [line["step"] for line in log] == [0, 7, 12]
    for key in ("loss", "vqa_exact", "mini/loss", "mini/vqa_relaxed", "questions", "seconds"):
        assert f"evaluation/{key}" in log[-1]
    assert log[-1]["evaluation/loss"] < log[0]["evaluation/loss"]
    assert sum("held-out loss" in line for line in said) == 3
    assert "evaluation/loss" in seen[-1]
    answers = [json.loads(x) for x in (out / "evaluation" / "step_00000012" / "answers.jsonl").read_text().splitlines()]
    held = json.loads((out / "held_out.json").read_text())["mini"]["held_out"]
    assert len(held) == 5
    assert {int(a["where"].rsplit(":", 1)[1]) - 1 for a in answers} <= set(held)
    for index in held:  # broken from now on: whoever reads them says so
        picture = tmp_path / "mini" / "images" / f"{index:03}.png"
        if picture.is_file():
            picture.write_bytes(picture.read_bytes()[:-20])
    again = pretrain(file, overwrite=True, say=said.append)
    assert again.train.skipped == 0
    assert any("samples of 'mini' are unusable or too long and are not asked" in line for line in said)


def test_tensorboard_and_the_report_show_answers_with_their_pictures_and_boxes(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = pretrain(recipe(tmp_path, data, evaluation=places(data, shown=2, every=8), precision="bf16")).out
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert "evaluation/places/grounding_iou" in tags["scalars"]
    assert tags["images"] == ["evaluation/answers/00", "evaluation/answers/01"]
    assert any("answers/01" in tag for tag in tags["tensors"])
    pixels = np.asarray(Image.open(out / "evaluation" / "step_00000008" / "00.png"))
    assert (pixels == (0, 158, 115)).all(-1).any()  # the reference's box
    html = (out / "report.html").read_text()
    for text in ("Held out", "Where is the square?", "boxes at IoU 0.5", "vitp ask", "data:image/png"):
        assert text in html


def test_a_resumed_run_holds_out_and_finds_the_same(data: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class StopAt:
        def update(self, step: int, steps: int, logs: dict[str, float]) -> None:
            if step == 6:
                raise Stop

        def say(self, text: str) -> None:
            pass

    file = recipe(tmp_path, data, evaluation={"hold_out": 6, "every": 1, "worse_by": 0.0, "worse_for": 1})
    whole = pretrain(file).out
    with pytest.raises(Stop):
        pretrain(file, [f"out={tmp_path / 'b'}"], progress=StopAt())
    pretrain(file, [f"out={tmp_path / 'b'}"], resume=True)

    def found(run: Path) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if not k.endswith("seconds")} for line in read_evaluations(run)]

    assert found(whole) == found(tmp_path / "b")
    first, second = weights(whole), weights(tmp_path / "b")
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())
    with pytest.raises(CheckpointError, match=r"data\.sources\.0\.hold_out was 6, is now 3"):
        pretrain(file, ["evaluation.hold_out=3"], resume=True)
    with pytest.raises(CheckpointError, match=r"data\.sources\.0\.hold_out was 6, is now None"):
        pretrain(file, ["evaluation.hold_out=0"], resume=True)
    pretrain(file, ["evaluation.every=5", "evaluation.samples=1"], resume=True)  # how it is watched may change


def test_a_step_evaluated_twice_counts_once(tmp_path: Path) -> None:
    """A run killed before its first checkpoint begins anew, and with it the evaluation before the first step."""
    lines = [{"step": 0, "evaluation/loss": 2.0}, {"step": 1, "loss": 3.0}, {"step": 0, "evaluation/loss": 1.0}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_evaluations(tmp_path) == lines[2:]
    assert read_log(tmp_path) == lines[1:2]


def test_what_is_not_evaluated_leaves_the_fingerprint_of_older_runs(data: Path, tmp_path: Path) -> None:
    config = load(PretrainConfig, recipe(tmp_path, data))
    keys = fingerprint(config, config.data.open_sources())
    assert not [key for key in keys if "hold_out" in key or key.startswith("evaluation")]


def test_a_lack_of_memory_costs_the_evaluation_and_not_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Evaluator) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Evaluator, "_ask", full)
    said: list[str] = []
    result = pretrain(recipe(tmp_path, data, evaluation=places(data, every=4)), say=said.append)
    assert result.train.step == 8
    assert sum("no memory" in line and "evaluation.batch_size" in line for line in said) == 3
    assert read_evaluations(result.out) == []


def test_other_ranks_write_nothing(data: Path, tmp_path: Path) -> None:
    config, task, held = evaluated(data, tmp_path)
    said: list[str] = []
    for rank, everywhere in ((1, False), (1, True)):
        evaluator = Evaluator(
            task.model, task.builder, held, config.evaluation, out=tmp_path / "other", name="x", steps=9, bf16=False,
            say=said.append, rank=rank, everywhere=everywhere,
        )  # fmt: skip
        assert evaluator(3) is None
    assert not said
    assert not (tmp_path / "other").exists()


def test_mistakes_are_one_sentence(data: Path, tmp_path: Path) -> None:
    own = places(data)["sources"][0]
    with pytest.raises(ConfigError, match="'places' would be asked about from two places"):
        pretrain(recipe(tmp_path, data, evaluation={"sources": [own, own]}))
    with pytest.raises(ConfigError, match="'mini' would be asked about from two places"):
        pretrain(recipe(tmp_path, data, evaluation={"hold_out": 3, "split": "test"}))
    with pytest.raises(ConfigError, match=r"evaluation\.evry.*did you mean 'every'"):
        pretrain(recipe(tmp_path, data), ["evaluation.evry=3"])
    with pytest.raises(DataError, match="nothing is left to train on"):
        pretrain(recipe(tmp_path, data), ["evaluation.hold_out=1000"])
    with pytest.raises(DataError, match="nowhere.* is the root of source 'places'"):
        pretrain(recipe(tmp_path, data, evaluation={"sources": [{**own, "root": str(tmp_path / "nowhere")}]}))
    (tmp_path / "broken.jsonl").write_text('{"conversations": []}\n' * 3)
    broken = {"name": "broken", "root": str(tmp_path), "annotations": "broken.jsonl"}
    skip = ["data.bad_samples=skip", "max_skipped_share=1"]
    with pytest.raises(DataError, match="'broken' has no sample to ask about"):
        pretrain(recipe(tmp_path, data, evaluation={"sources": [broken]}), skip)
    assert not (tmp_path / "out").exists()

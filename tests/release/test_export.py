"""Every export format, opened by the public library it is for; other sizes and precisions; cards; what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tests.release.edited import edited

from vitp import load_backbone, load_run
from vitp.backbone.vit import read_metadata
from vitp.commands.export import FORMATS, export, fixed_input
from vitp.errors import CheckpointError, ConfigError
from vitp.train.checkpoint import list_checkpoints
from vitp.vlm.generate import Question, answer


def features(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    x = fixed_input(32)
    with torch.no_grad():
        return x, load_run(run)[0].tower.forward_features(x)  # type: ignore[operator]


# ------------------------------------------------------------------------------------------ opened by the public library


def test_timm_opens_the_folder_by_itself(run: Path, tmp_path: Path) -> None:
    result = export(run, path=tmp_path / "for_timm")
    model = eval(result.command, {"timm": timm}).eval()
    x, ours = features(run)
    torch.testing.assert_close(model.forward_features(x), ours, rtol=0, atol=1e-5)
    assert model.pretrained_cfg["mean"] == [0.5, 0.4, 0.3]
    assert load_backbone(tmp_path / "for_timm").config.mean == (0.5, 0.4, 0.3)
    assert {file.name for file in (tmp_path / "for_timm").iterdir()} == {
        "config.json", "model.safetensors", "README.md", "vitp_export.json",
    }  # fmt: skip


@pytest.mark.parametrize("which", ["run", "other_run"])
def test_transformers_opens_the_vision_model(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    import transformers

    run = request.getfixturevalue(which)
    result = export(run, to="hf-vision", path=tmp_path / "vision")
    model = eval(result.command, {"transformers": transformers}).eval()
    x, ours = features(run)
    with torch.no_grad():
        torch.testing.assert_close(model(pixel_values=x).last_hidden_state, ours, rtol=0, atol=1e-5)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "vision")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    given = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    backbone = load_run(run)[2].model.tower
    expected = (pixels / 255 - np.array(backbone.mean)) / np.array(backbone.std)
    np.testing.assert_allclose(given[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    if which == "run":  # and back
        again = load_backbone(tmp_path / "vision")
        for name, tensor in load_run(run)[0].tower.state_dict().items():
            assert torch.equal(again.vit.state_dict()[name], tensor), name
    else:
        with pytest.raises(CheckpointError, match="use_mean_pooling is False"):
            load_backbone(tmp_path / "vision")


def test_the_released_layout_holds_every_tensor_and_comes_back(run: Path, tmp_path: Path) -> None:
    result = export(run, to="vitp", path=tmp_path / "mine.safetensors")
    names = load_file(result.weights).keys()
    assert all(name.startswith(("vision_model.embeddings.", "vision_model.encoder.layers.")) for name in names)
    assert len(names) == 4 + 2 * 14
    backbone = load_backbone(result.weights)
    for name, tensor in load_run(run)[0].tower.state_dict().items():
        assert torch.equal(backbone.vit.state_dict()[name], tensor), name
    assert backbone.config.heads == 3  # not what heads of 64 channels would give: the metadata knows
    assert float(read_metadata(result.weights)["max_abs_difference"]) == pytest.approx(
        result.max_abs_difference, rel=1e-5
    )


@pytest.mark.parametrize("which", ["run", "other_run"])
def test_transformers_answers_a_question_like_the_run_itself(
    which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import transformers

    run = request.getfixturevalue(which)
    result = export(run, to="hf", path=tmp_path / "whole")
    pipe = eval(result.command, {"transformers": transformers})
    model, tokenizer, config = load_run(run)
    rng = np.random.default_rng(1)
    for height, width in ((32, 32), (32, 64), (96, 32)):  # whole tiles: only the thumbnail is resized
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        question = Question(torch.from_numpy(pixels).permute(2, 0, 1), "Which colour is it?")
        ours = answer(model, tokenizer, [question], tiling=config.data.tiling, max_new_tokens=6)[0]
        content = [{"type": "image", "image": Image.fromarray(pixels)}, {"type": "text", "text": question.text}]
        found = pipe(text=[{"role": "user", "content": content}], max_new_tokens=6, return_full_text=False)
        assert found[0]["generated_text"].strip() == ours
    assert pipe.model.config.text_config.tie_word_embeddings is (which == "run")
    assert pipe.model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert "_name_or_path" not in json.loads((tmp_path / "whole" / "config.json").read_text())["text_config"]


@pytest.mark.parametrize("large", [False, True])
def test_onnxruntime_gives_the_same_features_for_any_batch(
    run: Path, tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    if large:
        monkeypatch.setattr("vitp.release.onnx_graph._LARGEST", 1000)
    result = export(run, to="onnx", path=tmp_path / "vit.onnx", image_size=40)
    beside = {"vit.onnx.data"} if large else set()
    assert {f.name for f in tmp_path.iterdir()} == {"vit.onnx", "vit.onnx.json", "vit.onnx.md", *beside}
    backbone = load_backbone(export(run, path=tmp_path / "v.safetensors", image_size=40).weights, trainable=False)
    for batch in (1, 5):
        images = torch.rand(batch, 3, 40, 40, generator=torch.Generator().manual_seed(batch))
        found, pooled = eval(result.command, {"onnxruntime": onnxruntime, "pixels": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, backbone.features(images).numpy(), atol=1e-4)
            np.testing.assert_allclose(pooled, backbone.pooled(images).numpy(), atol=1e-4)
    props = {p.key: p.value for p in onnx.load(result.weights).metadata_props}
    assert float(props["max_abs_difference"]) == pytest.approx(result.max_abs_difference, rel=1e-4)
    assert b"/onnx_graph.py" not in result.weights.read_bytes()  # no places of the machine that wrote it


# ------------------------------------------------------------------------------------------------- sizes and precisions


@pytest.mark.parametrize("how", ["pinv", "bicubic"])
def test_another_patch_is_the_same_at_export_and_at_load(run: Path, tmp_path: Path, how: Any) -> None:
    plain = export(run, path=tmp_path / "plain.safetensors")
    moved = export(run, path=tmp_path / "moved.safetensors", patch_size=10, image_size=60, resample=how)
    at_load = load_backbone(plain.weights, patch_size=10, image_size=60, resample=how)
    assert load_backbone(moved.weights).config == at_load.config
    for name, tensor in load_backbone(moved.weights).vit.state_dict().items():
        assert torch.equal(tensor, at_load.vit.state_dict()[name]), name
    assert "The run's own sizes were 32 px and patch 8" in moved.card.read_text()
    with pytest.raises(ConfigError, match="leave the sizes as they are"):
        export(run, to="hf", patch_size=10)


@pytest.mark.parametrize("to", ["timm", "vitp", "hf-vision", "hf"])
def test_bf16_files_hold_rounded_weights(run: Path, tmp_path: Path, to: str) -> None:
    path = tmp_path / ("x.safetensors" if FORMATS[to].suffix else "x")
    result = export(run, to=to, path=path, dtype="bf16")
    file = path if path.is_file() else path / "model.safetensors"
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert result.max_abs_difference < 1e-4  # from the run's tower, rounded
    if to == "vitp":
        own = load_run(run)[0].tower.state_dict()["blocks.0.ls1.gamma"]
        assert torch.equal(tensors["vision_model.encoder.layers.0.ls1"], own.bfloat16())


# --------------------------------------------------------------------------------------------------------------- cards


def test_the_card_states_what_is_known_and_nothing_else(run: Path, tmp_path: Path) -> None:
    result = export(run, to="hf-vision", path=tmp_path / "vision")
    text = result.card.read_text(encoding="utf-8")
    assert result.card.name == "README.md"
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["library_name"] == "transformers"
    assert front["license"] == "other"
    assert "base_model" not in front
    assert "| mini | colour \\| noise | 9 | 1 | CC0 | not stated |" in text
    assert "All weights started at random" in text
    assert "(VRL): 75% on 100% of the samples" in text
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(list_checkpoints(run)[-1] / "model.safetensors").items()):
        digest.update(f"{name} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    weights = digest.hexdigest()
    recipe = hashlib.sha256((run / "recipe.yaml").read_bytes()).hexdigest()
    assert weights in text
    assert hashlib.sha256(f"{recipe}{weights}".encode()).hexdigest() in text
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    assert f"| loss | {last['loss']:.6g} | {last['step']} |" in text
    assert "from_pretrained('vision')" in text  # as its reader will have it, not as this machine had it
    assert str(tmp_path) not in text.split("<details>")[0]
    record = json.loads(result.config.read_text())
    assert record["max_abs_difference"] == result.max_abs_difference <= record["allowed"]


def test_the_card_names_initial_weights_and_what_they_state(other_run: Path, run: Path, tmp_path: Path) -> None:
    text = export(other_run, path=tmp_path / "a.safetensors").card.read_text()
    assert "- language model: `llama` (licence stated there: mit)" in text
    assert "random numbers (tower, projector)" in text
    assert "1 of 1 sources state no licence" in text
    first = export(run, path=tmp_path / "first.safetensors")

    def start(document: dict[str, Any]) -> None:
        document["model"]["tower"]["weights"] = str(first.weights)
        document["model"]["language_model"]["path"] = "Qwen/Qwen2.5-0.5B-Instruct"

    second = export(edited(run, tmp_path / "second", start), path=tmp_path / "b.safetensors").card.read_text()
    assert "tower: `first.safetensors`, exported from the run mini (" in second
    assert yaml.safe_load(second.split("---\n")[1])["base_model"] == ["Qwen/Qwen2.5-0.5B-Instruct"]
    assert "(licence not stated there)" in second

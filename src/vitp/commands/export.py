"""`vitp export`: a run's ViT or whole model in a format other tools read, its parity proved and its card written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from vitp.backbone.resample import RESAMPLES, Resample, resized
from vitp.backbone.vit import BackboneConfig
from vitp.commands.pretrain import load_run
from vitp.commands.pretrain_recipe import PretrainConfig
from vitp.errors import CheckpointError, ConfigError, VitpError
from vitp.files import write_json, write_text
from vitp.release.card import model_card, record
from vitp.release.contract import Format, OnHub, Release, fixed_input
from vitp.release.facts import read_facts
from vitp.release.hub import check_push, push
from vitp.release.onnx_graph import onnx_command, require_onnx, write_onnx
from vitp.release.place import CARD, RECORD, check_place, files_of, staged
from vitp.release.towers import (
    TIMM_CONFIG,
    TIMM_WEIGHTS,
    hf_vision_command,
    published_command,
    timm_call,
    timm_command,
    write_hf_vision,
    write_published,
    write_timm,
)
from vitp.release.whole import hf_command, write_hf
from vitp.train.checkpoint import load_model, model_tensors

__all__ = ["FORMATS", "ExportResult", "backbone_config", "export", "fixed_input", "timm_call"]

_SAFE = ".safetensors"
FORMATS = {
    made.name: made
    for made in (
        Format("timm", "the ViT for timm", "timm", "backbone.safetensors", _SAFE, write_timm, timm_command),
        Format(
            "vitp", "the ViT in the released layout", "vitp and transformers", "vitp.safetensors", _SAFE,
            write_published, published_command,
        ),
        Format(
            "hf-vision", "the ViT for transformers", "transformers' InternVLVisionModel", "hf-vision", "",
            write_hf_vision, hf_vision_command,
        ),
        Format(
            "hf", "the whole model for transformers", "transformers' InternVLForConditionalGeneration", "hf", "",
            write_hf, hf_command, whole=True,
        ),
        Format(
            "onnx", "the ViT as a graph", "onnxruntime", "backbone.onnx", ".onnx", write_onnx, onnx_command, dtypes=("fp32",)
        ),
    )
}  # fmt: skip
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class ExportResult:
    """What was written and how close it is to the run's own output.

    `weights` is the file or folder, `config` the record beside or in it, `card` the model card; `max_abs_difference` was
    measured on the file opened again through `library`; `command` is the expression that opens it; `pushed` is the
    address of the commit on the hub, empty without one.
    """

    weights: Path
    config: Path
    card: Path
    max_abs_difference: float
    command: str
    library: str
    pushed: str = ""


def backbone_config(config: PretrainConfig) -> BackboneConfig:
    """The tower of a recipe as a backbone's description, without what only pretraining needs."""
    names = BackboneConfig.model_fields.keys()
    return BackboneConfig(**{name: getattr(config.model.tower, name) for name in names})


def export(
    run: Path | str,
    *,
    to: str = "timm",
    path: Path | str | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    resample: Resample = "pinv",
    dtype: str = "fp32",
    overwrite: bool = False,
    push_to: str | None = None,
    public: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Write a pretraining run's model for another library, open it again there, and compare.

    Args:
        run: folder of a pretraining run.
        to: timm, vitp, hf-vision, hf or onnx; see docs/export.md.
        path: the file or folder to write; default: the format's own name in the run's folder. A record (JSON) and the
            model card are written beside a file, or in the folder.
        image_size: side in pixels to resize the ViT's positions for; None: the run's.
        patch_size: side in pixels to resample the ViT's patch embedding to; None: the run's.
        resample: "pinv" (timm's pseudo-inverse) or "bicubic" (the released code).
        dtype: "fp32" or "bf16", of the tensors in the file.
        overwrite: replace an earlier export at `path`.
        push_to: owner/name on a Hugging Face hub to send the export to, too; made if missing, private.
        public: make it public instead.
        say: receives lines worth reading.

    Raises:
        CheckpointError: not a run, no checkpoint yet, a part that the format cannot hold, or the re-loaded model differs.
        ConfigError: sizes that do not fit together.
        OutputError: something is at `path` already, it cannot be written, or the hub cannot be reached.
        MissingExtraError: onnx without its extra.
        VitpError: unknown format or dtype, or a path of another suffix.
    """
    folder = Path(run)
    made = _format(to, dtype, resample, resized=image_size is not None or patch_size is not None)
    if not (folder / "recipe.yaml").is_file():
        raise CheckpointError(f"{folder} is not a pretraining run: it holds no recipe.yaml")
    place = folder / made.default if path is None else Path(path)
    suffix = _suffix(made, place)
    check_place(place, suffix, overwrite=overwrite)
    if push_to is not None:
        check_push(push_to)
    with staged(place) as stage:
        release = _release(folder, image_size, patch_size, resample, _DTYPES[dtype])
        parity = made.write(release, stage / place.name)
        parity.require(place, made.library)
        command = made.command(release, place)
        _, described, card = files_of(stage / place.name, suffix)
        named = _hub_name(made, place)
        reader = Path(place.name) if push_to is None else OnHub(push_to, named)
        write_json(described, record(release, made, command, parity))
        write_text(card, model_card(release, made, reader, parity))
    weights, described, card = files_of(place, suffix)
    result = ExportResult(weights, described, card, parity.difference, command, made.library)
    if push_to is None:
        return result
    say(f"sending to {push_to} ({'public' if public else 'private'})")
    message = f"{release.facts.config.name}, step {release.facts.step}, as {made.name} (vitp export)"
    address = push(_to_send(made, place, suffix), push_to, private=not public, message=message)
    return replace(result, pushed=address)


def _format(to: str, dtype: str, resample: str, *, resized: bool) -> Format:
    if to not in FORMATS:
        raise VitpError(f"--to {to}: unknown format; formats here: {', '.join(FORMATS)}")
    made = FORMATS[to]
    if dtype not in made.dtypes:
        raise VitpError(f"--dtype {dtype}: {to} is written in {' or '.join(made.dtypes)}")
    if resample not in RESAMPLES:
        raise VitpError(f"--resample {resample}: choose {' or '.join(RESAMPLES)}")
    if made.whole and resized:
        raise ConfigError(
            f"--to {to} is the whole model, whose language model knows its own tiles: leave the sizes as they are"
        )
    if to == "onnx":
        require_onnx()
    return made


def _suffix(made: Format, place: Path) -> str:
    """The suffix of the file to write, "" for a folder; timm's format may be either."""
    if made.name == "timm" and not place.suffix:
        return ""
    if made.suffix and place.suffix != made.suffix:
        or_folder = ", or of a folder without a dot" if made.name == "timm" else ""
        raise VitpError(f"{place}: --to {made.name} writes one file; give a name that ends in {made.suffix}{or_folder}")
    return made.suffix


def _release(
    folder: Path, image_size: int | None, patch_size: int | None, how: Resample, dtype: torch.dtype
) -> Release:
    """The run, and its tower at the sizes and in the precision asked for."""
    model, tokenizer, config = load_run(folder)
    own = backbone_config(config)
    backbone, tensors = resized(own, model_tensors(model.tower), image_size, patch_size, how)
    tower: nn.Module = model.tower
    if backbone != own or dtype != torch.float32:
        tower = backbone.create()
        rounded = {name: tensor.to(dtype).float() for name, tensor in tensors.items()}
        load_model(tower, rounded, folder)
    return Release(model, tokenizer, tower.eval().float(), backbone, read_facts(folder, config, model), dtype)


def _hub_name(made: Format, place: Path) -> str:
    """What the weights are called on a hub; the ONNX graph names the file beside it and therefore keeps its own name."""
    return place.name if made.name == "onnx" else TIMM_WEIGHTS


def _to_send(made: Format, place: Path, suffix: str) -> dict[str, Path]:
    """Name in the repository -> file."""
    if not suffix:
        return {str(file.relative_to(place)): file for file in sorted(place.rglob("*")) if file.is_file()}
    weights, described, card = files_of(place, suffix)
    files = {_hub_name(made, place): weights, CARD: card}
    files[TIMM_CONFIG if made.name == "timm" else RECORD] = described
    beyond = place.with_name(f"{place.name}.data")  # weights too large for one file
    return {**files, **({beyond.name: beyond} if beyond.is_file() else {})}

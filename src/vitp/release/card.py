"""The model card: front matter for hubs, then what it is, how to open it, from which data, and how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import vitp
from vitp.release.contract import Format, OnHub, Parity, Release, file_at, opened_at
from vitp.release.towers import timm_config, vision_config

if TYPE_CHECKING:
    from vitp.release.facts import RunFacts

_UNSTATED = "not stated: ask the data owner"
_LIBRARY = {"timm": "timm", "vitp": "vitp", "hf-vision": "transformers", "hf": "transformers", "onnx": "onnx"}


def model_card(release: Release, made: Format, place: Path | OnHub, parity: Parity) -> str:
    """Markdown with YAML front matter.

    Args:
        release: the run and its tower.
        made: the format it was written in.
        place: where readers of the card will have it: a name beside the card, or a repository on a hub.
        parity: as measured.
    """
    facts = release.facts
    parts = [
        f"---\n{yaml.safe_dump(front_matter(release, made), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.config.name}",
        _what(release, made),
        "## Open it",
        _opening(release, made, place),
        "## Proof",
        f"Written by `vitp export --to {made.name}`, opened again by {made.library}: greatest absolute difference from the "
        f"run's own output {parity.difference:.3g} on a fixed input in fp32 (greatest value there: {parity.scale:.3g}; allowed: "
        f"{parity.allowed:.3g}).",
        "## Pretraining",
        _pretraining(facts),
        "## Measures of the run",
        _measures(facts),
        "## Data and licences",
        _data(facts),
        "## Provenance",
        _provenance(facts),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(release: Release, made: Format) -> dict[str, Any]:
    """What hubs index. A licence that nobody stated for the whole is `other`, and the card says what is known."""
    base = [origin.name for origin in release.facts.origins if origin.hub]
    return {
        "library_name": _LIBRARY[made.name],
        "pipeline_tag": "image-text-to-text" if made.whole else "image-feature-extraction",
        "license": "other",
        "license_name": "inherited-from-data-and-initial-weights",
        **({"base_model": base} if base else {}),
        "tags": ["vision-transformer", "visual-instruction-pretraining", "vitp"],
    }


def _what(release: Release, made: Format) -> str:
    backbone = release.backbone
    whole = "A vision-language model" if made.whole else "A vision transformer"
    own = release.facts.config.model.tower
    resampled = (
        f" The run's own sizes were {own.image_size} px and patch {own.patch_size}; kernel and positions were resampled."
        if (own.image_size, own.patch_size) != (backbone.image_size, backbone.patch_size)
        else ""
    )
    return (
        f"{whole} pretrained by visual instruction (ViTP, arXiv 2509.17562) with `vitp` {vitp.__version__}.\n\n"
        f"Tower: `{backbone.architecture}`, {backbone.image_size} px, patch {backbone.patch_size}; RGB pixels in [0, 1] "
        f"normalised with mean {backbone.mean} and std {backbone.std}.{resampled} "
        f"Weights: {str(release.dtype).removeprefix('torch.')}."
    )


def _opening(release: Release, made: Format, place: Path | OnHub) -> str:
    command = made.command(release, place)
    lines = {
        "timm": ["import timm, vitp", f"model = {command}"],
        "vitp": ["import vitp", f"backbone = {command}  # any image size, four feature maps"],
        "hf-vision": [
            "import transformers",
            f"model = {command}",
            f"processor = transformers.AutoImageProcessor.from_pretrained({opened_at(place)})",
        ],
        "hf": [
            "import transformers",
            f"pipe = {command}",
            'image = {"type": "image", "path": "picture.jpg"}',
            'question = {"type": "text", "text": "What is in the picture?"}',
            'print(pipe(text=[{"role": "user", "content": [image, question]}], max_new_tokens=32, return_full_text=False))',
        ],
        "onnx": [
            "import onnxruntime",
            f"side = {release.backbone.image_size}  # pixels: float32 [batch, 3, side, side] in [0, 1], any batch",
            f"features, pooled = {command}",
        ],
    }[made.name]
    if made.name == "timm":
        lines.append(f"backbone = vitp.load_backbone({file_at(place)})  # any image size, four feature maps")
    if made.name == "hf-vision" and isinstance(place, Path) and vision_config(release).use_mean_pooling:
        lines.append(
            f"backbone = vitp.load_backbone({opened_at(place)})  # import vitp; any image size, four feature maps"
        )
    if isinstance(place, OnHub) and made.suffix:
        lines.insert(0, "import huggingface_hub")
    return "```python\n" + "\n".join(lines) + "\n```" + (_RELEASED if made.name == "vitp" else "")


_RELEASED = (
    "\n\nTensors are called as in the released `ViTP_ViT_L_300M_*.safetensors` (`vision_model.` before every name); the "
    "released downstream code reads such files with `pretrained_type='full'`."
)


def _pretraining(facts: RunFacts) -> str:
    config = facts.config
    vrl = config.vrl
    return (
        f"{facts.step} of {config.steps + config.warm_start.steps} steps ({config.warm_start.steps} of them text only), "
        f"{config.batch_size} samples a step with images, started from {_start(facts)}; visual tokens dropped "
        f"(VRL): {vrl.ratio:.0%} on {vrl.probability:.0%} of the samples; learning rates {config.lr_tower:g} (tower), "
        f"{config.lr_projector:g} (projector), {config.lr_language_model:g} (language model); seed {config.seed}."
    )


def _start(facts: RunFacts) -> str:
    """The initial weights in words; a part that no origin names was drawn at random."""
    named = [f"`{origin.name}` ({origin.part})" for origin in facts.origins]
    parts = {origin.part for origin in facts.origins}
    if "whole model" not in parts:
        random = [part for part in ("tower", "projector", "language model") if part not in parts]
        named.append(f"random numbers ({', '.join(random)})")
    return " and ".join(named)


def _measures(facts: RunFacts) -> str:
    if not facts.metrics:
        return "The run's log holds none."
    rows = [f"| {name} | {value:.6g} | {step} |" for name, (value, step) in sorted(facts.metrics.items())]
    return "\n".join(["| measure | last value | step |", "|---|---|---|", *rows])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _data(facts: RunFacts) -> str:
    config, counted = facts.config, facts.samples
    rows = []
    for source in config.data.sources:
        samples = counted.get(source.name, source.samples)
        cells = (
            source.name,
            source.modality or "not stated",
            "not stated" if samples is None else f"{samples:,}",
            f"{source.weight:g}",
            source.licence or _UNSTATED,
            source.obtain or "not stated",
        )
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    table = "\n".join(
        ["| source | modality | records | weight | licence | where from |", "|---|---|---|---|---|---|", *rows]
    )
    unknown = sum(source.licence is None for source in config.data.sources)
    said = f" {unknown} of {len(rows)} sources state no licence." if unknown else ""
    return f"{table}\n\n{_lineage(facts)}{said} `vitp` itself is Apache-2.0; that says nothing about the weights."


def _lineage(facts: RunFacts) -> str:
    """Whose terms the weights carry on."""
    if not facts.origins:
        return "All weights started at random, so their terms are those of the sources above."
    listed = "\n".join(f"- {origin.sentence()}" for origin in facts.origins)
    return f"The weights carry the terms of the sources above and of what they started from:\n\n{listed}\n\n"


def _provenance(facts: RunFacts) -> str:
    rows = {
        **facts.provenance,
        "run (SHA-256 of recipe and weights)": facts.hash,
        "recipe.yaml (SHA-256)": facts.recipe_hash,
        "weights (SHA-256 of all tensors)": facts.weights_hash,
    }
    listed = "\n".join(f"- {key}: {value}" for key, value in rows.items())
    return f"{listed}\n\n<details><summary>recipe.yaml</summary>\n\n```yaml\n{facts.recipe.rstrip()}\n```\n\n</details>"


def record(release: Release, made: Format, command: str, parity: Parity) -> dict[str, Any]:
    """The export as JSON: for timm its own config.json with ours beside it."""
    backbone, facts = release.backbone, release.facts
    about = {
        "format": made.name,
        "vitp": vitp.__version__,
        "opened_again_by": made.library,
        "max_abs_difference": parity.difference,
        "max_abs_output": parity.scale,
        "allowed": parity.allowed,
        "dtype": str(release.dtype).removeprefix("torch."),
        "open": command,
        "backbone": backbone.model_dump(mode="json"),
        "run": {"name": facts.config.name, "step": facts.step, "hash": facts.hash, "recipe": facts.recipe_hash},
        "provenance": facts.provenance,
        "measures": {name: {"value": value, "step": step} for name, (value, step) in facts.metrics.items()},
    }
    if made.name == "timm":
        width = int(release.tower.num_features)  # type: ignore[arg-type]
        return {**timm_config(backbone, width), "vitp_export": about}
    return about

"""What the tensors of an InternVL are called, in its three layouts, both ways.

``internvl`` is the published one (InternVL2, 2.5, 3: ``vision_model.*``, ``mlp1.*``, ``language_model.*``, which
otherwise needs remote code). ``internvl_hf`` is transformers' own ``InternVLForConditionalGeneration`` by its module
names, ``internvl_hf_prefixed`` the same as the ``-hf`` repositories store it (and as transformers itself still writes it).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from vitp.backbone.layouts import Layout, Place, names_of, place_of

VlmLayout = Literal["internvl", "internvl_hf", "internvl_hf_prefixed"]
VLM_LAYOUTS: tuple[VlmLayout, ...] = ("internvl", "internvl_hf", "internvl_hf_prefixed")


@dataclass(frozen=True)
class _Names:
    """Where the parts of a layout are: prefixes, and the projector's three modules."""

    tower: str
    vit: Layout
    projector: tuple[str, str, str]  # norm, fc1, fc2
    decoder: str
    head: str


_NAMES: dict[VlmLayout, _Names] = {
    "internvl": _Names(
        "vision_model.", "internvit", ("mlp1.0", "mlp1.1", "mlp1.3"), "language_model.model.", "language_model.lm_head."
    ),
    "internvl_hf": _Names(
        "model.vision_tower.",
        "transformers",
        tuple(f"model.multi_modal_projector.{m}" for m in ("layer_norm", "linear_1", "linear_2")),  # type: ignore[arg-type]
        "model.language_model.",
        "lm_head.",
    ),
    "internvl_hf_prefixed": _Names(
        "vision_tower.",
        "transformers",
        tuple(f"multi_modal_projector.{m}" for m in ("layer_norm", "linear_1", "linear_2")),  # type: ignore[arg-type]
        "language_model.model.",
        "language_model.lm_head.",
    ),
}
_OURS = ("projector.norm", "projector.fc1", "projector.fc2")
_DECODER, _HEAD = "language_model.model.", "language_model.lm_head."


def layout_of_vlm(names: Iterable[str]) -> VlmLayout | None:
    """The layout in which a whole checkpoint's tensors are named; None for none of ours."""
    heads = {name.split(".", 1)[0] for name in names}
    if "mlp1" in heads:
        return "internvl"
    if "vision_tower" in heads:
        return "internvl_hf_prefixed"
    return "internvl_hf" if "model" in heads else None


def place_in_vlm(name: str, layout: VlmLayout) -> Place | None:
    """Where the tensor `name` of `layout` belongs in a `VisionLanguageModel`; None where it has no such tensor."""
    names = _NAMES[layout]
    if name.startswith(names.tower):
        found = place_of(name.removeprefix(names.tower), names.vit)
        return Place(f"tower.{found.name}", found.part) if found else None
    for theirs, ours in ((names.decoder, _DECODER), (names.head, _HEAD)):
        if name.startswith(theirs):
            return Place(ours + name.removeprefix(theirs))
    for module, own in zip(names.projector, _OURS, strict=True):
        if name.startswith(f"{module}."):
            return Place(own + name.removeprefix(module))
    return None


def names_in_vlm(name: str, layout: VlmLayout) -> tuple[str, ...]:
    """What the tensor `name` of a `VisionLanguageModel` is called in `layout` (three names for a fused qkv); or none."""
    names = _NAMES[layout]
    if name.startswith("tower."):
        return tuple(names.tower + theirs for theirs in names_of(name.removeprefix("tower."), names.vit))
    for theirs, ours in ((names.decoder, _DECODER), (names.head, _HEAD)):
        if name.startswith(ours):
            return (theirs + name.removeprefix(ours),)
    for module, own in zip(names.projector, _OURS, strict=True):
        if name.startswith(f"{own}."):
            return (module + name.removeprefix(own),)
    return ()

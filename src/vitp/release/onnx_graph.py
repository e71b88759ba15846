"""The ViT as an ONNX graph: pixels in, patch features and their mean out, for any number of pictures of one size."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vitp.backbone.vit import ViTBackbone
from vitp.errors import MissingExtraError
from vitp.release.contract import OnHub, Parity, Release, compare, file_at, fixed_input

INPUT, OUTPUTS = "images", ("features", "pooled")
_LARGEST = 1_800_000_000  # bytes; protobuf ends at 2 GiB, and the graph needs room beside the weights
_LIBRARIES = ("onnx", "onnxscript", "onnxruntime")


class DenseFeatures(nn.Module):
    """What the graph computes: pixels [B, 3, S, S] in [0, 1] -> tokens of the last block, and their mean.

    Normalisation is inside. features [B, C, S / p, S / p] carry the ViT's final norm if it has one; pooled is [B, C].
    """

    def __init__(self, backbone: ViTBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self.backbone.features(images)
        return features, features.flatten(2).mean(2)


def require_onnx() -> tuple[ModuleType, ModuleType]:
    """(onnx, onnxruntime).

    Raises:
        MissingExtraError: one of the extra's libraries is not installed.
    """
    from importlib import import_module

    try:
        found = [import_module(name) for name in _LIBRARIES]
    except ImportError as error:
        raise MissingExtraError(
            f"--to onnx needs {', '.join(_LIBRARIES)} ({error.name} is missing): pip install 'vitp[onnx]'"
        ) from error
    return found[0], found[2]


def _build(module: nn.Module, example: Tensor) -> Any:
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on the exporter's own insides
        return torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes={INPUT: {0: batch}},
            verbose=False,
        )


@torch.no_grad()
def write_onnx(release: Release, path: Path) -> Parity:
    """One .onnx file (weights beyond 1.8 GB in a .data file beside it); run by onnxruntime on one and on three pictures.

    Raises:
        MissingExtraError: the extra `onnx` is not installed.
    """
    onnx, onnxruntime = require_onnx()
    module = DenseFeatures(ViTBackbone(release.tower, release.backbone)).eval()
    pixels = fixed_input(release.backbone.image_size) / 4 + 0.5
    program = _build(module, pixels)
    size = sum(p.nbytes for p in module.parameters())
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(str(path), external_data=size > _LARGEST)
    parity = Parity(0.0, 0.0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for images in (pixels[:1], torch.cat([pixels, pixels.flip(-2)[:1]])):  # one, and a number never exported with
        theirs = session.run(list(OUTPUTS), {INPUT: images.numpy()})
        for ours, other in zip(module(images), theirs, strict=True):
            parity = parity.worse(compare(ours, torch.from_numpy(other)))
    _describe(onnx, path, release, parity.difference)
    return parity


def _describe(onnx: ModuleType, path: Path, release: Release, difference: float) -> None:
    """Write the run, the difference and the preprocessing in the graph's metadata; weights beside it stay untouched.

    The exporter's notes on where in the source code each node comes from are taken out: they name places on this machine.
    """
    graph = onnx.load(str(path), load_external_data=False)
    for part in (graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.input, *graph.graph.output):
        del part.metadata_props[:]
    for node in graph.graph.node:
        node.doc_string = ""
    about = {
        **release.metadata(),
        "max_abs_difference": f"{difference:.6e}",
        "backbone": release.backbone.model_dump_json(),
        "input": "RGB pixels in [0, 1]; normalisation is in the graph",
    }
    onnx.helper.set_model_props(graph, about)
    onnx.save_model(graph, str(path))


def onnx_command(release: Release, place: Path | OnHub) -> str:
    """How onnxruntime opens and runs it."""
    return f"onnxruntime.InferenceSession({file_at(place)}).run(None, {{{INPUT!r}: pixels}})"

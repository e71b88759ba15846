"""How a step is computed, not what: checkpointing, compilation, 8-bit linear layers, and the kernel of the loss."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface

from vitp.config import Config
from vitp.errors import ConfigError
from vitp.vlm.attention import NAME, packed_attention
from vitp.vlm.checkpointing import Checkpointing, layers_of, use_checkpointing
from vitp.vlm.folding import unfold_layer_scale
from vitp.vlm.model import VisionLanguageModel
from vitp.vlm.sparse_tail import TailBlock

_MEANING: dict[Checkpointing, str] = {
    "none": "nothing is computed twice",
    "mlp": "what lies between the products of an MLP is computed again",
    "full": "the forward pass of every block is computed again, a third more work",
}
_FLOAT8_CAPABILITY = (8, 9)  # the first GPUs with 8-bit tensor cores; Hopper is 9.0


class StepConfig(Config):
    """Speed against memory; the numbers of a run change by rounding at most (`float8`: by more)."""

    # What is computed again to save memory. auto: as little as fits by the count of vlm/memory.py, said at the start (released:
    # everything, a third more work)
    checkpointing: Literal["auto", "none", "mlp", "full"] = "auto"
    # torch.compile of each block. none: about a minute of compilation; on CPU it gains nothing in fp32 (docs/performance.md)
    compile: Literal["none", "blocks"] = "none"
    float8: bool = (
        False  # 8-bit products in the blocks' linear layers (torchao); Hopper and newer. Other numbers than bf16
    )
    # Softmax and gradient of the loss. auto: Liger's kernel on GPUs where it is installed (extra fast), else torch's
    loss_kernel: Literal["auto", "torch", "liger"] = "auto"

    @property
    def checkpointing_modes(self) -> tuple[Checkpointing, ...]:
        """The kinds of checkpointing a run may take, the least first."""
        return ("none", "mlp", "full") if self.checkpointing == "auto" else (self.checkpointing,)


def accelerate(
    model: VisionLanguageModel,
    config: StepConfig,
    device: torch.device,
    checkpointing: Checkpointing,
    say: Callable[[str], None],
) -> None:
    """Make a model compute its steps as `config` says; call once, before its parameters are laid out for training.

    Args:
        model: on any device.
        config: what was asked for.
        device: where it will train.
        checkpointing: what ``checkpointing`` comes to on this device.
        say: receives a line for everything that is switched on.

    Raises:
        ConfigError: something was asked for that this machine cannot do.
    """
    model.loss_kernel = choose_loss_kernel(config.loss_kernel, device)
    if model.loss_kernel != "torch":
        say(f"loss: {model.loss_kernel}'s kernel")
    if config.float8:
        check_float8(device)
        say(f"float8: {use_float8(model)} linear layers compute in 8 bits")
    if config.compile == "blocks":
        use_compile(model)
        say("compile: the first steps take a minute or two longer")
    say(f"activation checkpointing: {checkpointing}, {_MEANING[checkpointing]}")
    use_checkpointing(model, checkpointing)


def choose_loss_kernel(name: str, device: torch.device) -> Literal["torch", "liger"]:
    """Resolve ``loss_kernel``.

    Raises:
        ConfigError: Liger was asked for and is not installed, or there is no GPU for it.
    """
    installed = importlib.util.find_spec("liger_kernel") is not None
    if name == "liger" and not installed:
        raise ConfigError("loss_kernel: liger needs the package liger-kernel: pip install 'vitp[fast]', or say torch")
    if name == "liger" and device.type != "cuda":
        raise ConfigError("loss_kernel: liger runs on GPUs only, this run is on the CPU; say loss_kernel: auto")
    return "liger" if name != "torch" and installed and device.type == "cuda" else "torch"


def use_compile(model: VisionLanguageModel) -> None:
    """Compile the tower's blocks and the decoder's layers, one graph a kind, for all sizes of packs.

    Packed attention stays outside: its lengths change with every pack. So does a last block that picks survivors.
    """
    outside: Callable[..., Any] = torch.compiler.disable
    AttentionInterface.register(NAME, outside(packed_attention))
    compiled: dict[type, Any] = {}
    for _, layers in layers_of(model):
        for layer in layers:
            if isinstance(layer, TailBlock):
                continue
            kind = type(layer)
            if kind not in compiled:
                compiled[kind] = torch.compile(kind.forward)
            object.__setattr__(layer, "forward", MethodType(compiled[kind], layer))


def check_float8(device: torch.device) -> None:
    """See that 8-bit products are possible.

    Raises:
        ConfigError: no GPU, one without 8-bit tensor cores, or torchao is missing.
    """
    if device.type != "cuda":
        raise ConfigError(
            "float8: true needs a GPU of the Hopper generation or newer, this run is on the CPU; say false"
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _FLOAT8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ConfigError(f"float8: true needs a GPU of the Hopper generation or newer, this is a {name}; say false")
    if importlib.util.find_spec("torchao") is None:
        raise ConfigError("float8: true needs the package torchao: pip install 'vitp[float8]', or say false")


def use_float8(model: VisionLanguageModel, *, emulate: bool = False) -> int:
    """Let the linear layers of blocks compute in 8 bits, scaled by tensor; returns how many do.

    Embeddings, norms, projector, the output embedding and a last block that picks survivors stay as they are, and so do
    layers whose sizes are no multiple of 16. `emulate` computes the same numbers without such hardware, for tests.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # Positions of a pack are no multiple of 16 in general; gradients of weights are sums over them.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulate)
    count = 0
    for _, layers in layers_of(model):
        for layer in layers:
            if isinstance(layer, TailBlock):
                continue
            unfold_layer_scale(layer)  # converted layers would leave the scale out
            chosen = [m for m in layer.modules() if _fits_float8(m)]
            convert_to_float8_training(layer, config=config, module_filter_fn=lambda m, _: _fits_float8(m))
            count += len(chosen)
    return count


def _fits_float8(module: nn.Module) -> bool:
    return type(module) is nn.Linear and module.in_features % 16 == 0 and module.out_features % 16 == 0

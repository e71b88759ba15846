"""Activation checkpointing: how much of the forward pass is computed again in the backward pass, to save memory.

``mlp`` keeps every matrix product and computes again only what lies between the two of an MLP (GELU; SiLU and
the gate): 22 % of the tower's and 33 % of the decoder's activations for no product at all. ``full`` keeps a
layer's input alone and runs its forward pass again: a third more work. Gradients are the same in all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MethodType
from typing import Any, Literal, cast

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitp.train.keyed_drop import KeyedDrop
from vitp.vlm.sparse_tail import TailBlock

Checkpointing = Literal["none", "mlp", "full"]


def layers_of(model: Any) -> list[tuple[str, list[nn.Module]]]:
    """Blocks of the tower and layers of the decoder."""
    return [
        ("tower", list(getattr(model.tower, "blocks", []))),
        ("decoder", list(getattr(model.language_model.model, "layers", []))),
    ]


def use_checkpointing(model: Any, mode: Checkpointing) -> None:
    """Make the tower's blocks and the decoder's layers compute again what `mode` says; call once, before training.

    The forward pass of eval mode, and of training without gradients, stays as it was.
    """
    if mode == "none":
        return
    for _, layers in layers_of(model):
        for layer in layers:
            if mode == "full":
                object.__setattr__(layer, "_inner", layer.forward)  # compiled, perhaps
                _replace_forward(layer, _recomputed_layer)
            elif isinstance(getattr(layer, "mlp", None), nn.Module):
                _wrap_mlp(cast("nn.Module", layer.mlp))


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    # On the instance: names of weights, the class and hooks of others stay, and a deep copy has its own.
    object.__setattr__(module, "forward", MethodType(forward, module))


def _again(function: Callable[..., Any], *inputs: Any, context: Callable[[], Any] | None = None) -> Any:
    if context is None:
        return checkpoint(function, *inputs, use_reentrant=False)
    return checkpoint(function, *inputs, use_reentrant=False, context_fn=context)


def _wrap_mlp(mlp: nn.Module) -> None:
    if type(mlp) is Mlp:
        _replace_forward(mlp, _recomputed_gelu)
    elif all(isinstance(getattr(mlp, n, None), nn.Linear) for n in ("gate_proj", "up_proj", "down_proj")):
        _replace_forward(mlp, _recomputed_gate)
    else:
        _replace_forward(mlp, _recomputed_whole)


def _recomputed_gelu(self: Any, x: Tensor) -> Tensor:
    """Of timm's Mlp: the second product is not computed again, since nothing it returns is needed."""

    def second(hidden: Tensor) -> Tensor:
        out: Tensor = self.drop2(self.fc2(self.norm(self.drop1(self.act(hidden)))))
        return out

    hidden = self.fc1(x)
    out: Tensor = _again(second, hidden) if torch.is_grad_enabled() else second(hidden)
    return out


def _recomputed_gate(self: Any, x: Tensor) -> Tensor:
    """The gated MLP of Llama, Qwen and their kin."""

    def down(gate: Tensor, up: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(gate) * up)
        return out

    gate, up = self.gate_proj(x), self.up_proj(x)
    return _again(down, gate, up) if torch.is_grad_enabled() else down(gate, up)


def _recomputed_whole(self: Any, x: Tensor) -> Tensor:
    forward = type(self).forward
    out: Tensor = _again(forward, self, x) if torch.is_grad_enabled() else forward(self, x)
    return out


def _recomputed_layer(self: Any, *inputs: Any, **named: Any) -> Any:  # a layer's own arguments, whatever they are
    if not torch.is_grad_enabled():
        return self._inner(*inputs, **named)
    state = _draws(self)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _restored(state)

    return _again(lambda *x: self._inner(*x, **named), *inputs, context=contexts)


def _draws(layer: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """What the forward pass reads besides its inputs: it must be the same when it is run again."""
    state: list[tuple[nn.Module, str, Any]] = []
    for module in layer.modules():
        if isinstance(module, KeyedDrop):
            state.append((module, "decided", module.decided))
        if isinstance(module, TailBlock):
            state.append((module, "survivors", module.survivors))
    return state


@contextmanager
def _restored(state: list[tuple[nn.Module, str, Any]]) -> Iterator[None]:
    before = [(module, name, getattr(module, name)) for module, name, _ in state]
    for module, name, value in state:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)

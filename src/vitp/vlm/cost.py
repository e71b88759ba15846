"""What a sample costs, counted from the model's layers: the plan balances packs and ranks by it."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitp.instruction.plan import CostConfig
from vitp.vlm.model import VisionLanguageModel

_GIGA = 1e-9


def _linear_weights(module: nn.Module) -> int:
    """Numbers in the weight matrices of all linear layers and convolutions, each used once a token."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d))


def estimate_cost(model: VisionLanguageModel, *, tower_trains: bool = True) -> CostConfig:
    """Cost coefficients of a model in GFLOP, 1 multiply-add = 2 FLOP.

    Matrix products count, norms and the projector (about 0.1 % of a step) do not. The backward pass costs twice the
    forward one; a frozen tower has none. The language model is always passed backwards, to reach the projector.

    Args:
        model: the model.
        tower_trains: False where the tower's learning rate is 0.
    """
    tower: Any = model.tower
    config: Any = model.language_model.config
    decoder: Any = model.language_model.model
    tokens = model.grid**2 + int(tower.num_prefix_tokens)
    width, depth = int(tower.num_features), len(tower.blocks)
    forward = 2.0 * _linear_weights(tower) * tokens + 4.0 * tokens * tokens * width * depth
    head = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    attended = 2.0 * config.num_hidden_layers * config.num_attention_heads * head
    layers = _linear_weights(decoder)
    return CostConfig(
        per_tile=(3.0 if tower_trains else 1.0) * forward * _GIGA,
        per_token=6.0 * layers * _GIGA,
        per_token_pair=3.0 * float(attended) * _GIGA,
        per_supervised_token=6.0 * config.hidden_size * config.vocab_size * _GIGA,
    )

"""What a sample costs, counted from the model's layers: the plan balances packs and ranks by it."""

from __future__ import annotations

from vitp.instruction.plan import CostConfig
from vitp.vlm.flops import LastBlock, ModelFlops, Trained, Work, count_flops
from vitp.vlm.model import VisionLanguageModel

_GIGA = 1e-9


def estimate_cost(
    model: VisionLanguageModel | ModelFlops,
    trained: Trained | None = None,
    *,
    kept_share: float = 1.0,
    last_block: LastBlock = "dense",
) -> CostConfig:
    """Cost coefficients of a model in GFLOP, forward and backward, as `vitp.vlm.flops` counts them.

    What scales with the kept visual tokens (the projector, a sparse last block) goes to the tiles, at `kept_share`.

    Args:
        model: the model, or its counts.
        trained: which parts learn; None: all.
        kept_share: expected share of the visual tokens that survive the drop.
        last_block: how the tower's last block is computed.
    """
    counts = model if isinstance(model, ModelFlops) else count_flops(model)

    def cost(work: Work) -> float:
        return counts.of(work, trained, last_block=last_block).useful.total * _GIGA

    kept = kept_share * counts.patches / counts.cells
    return CostConfig(
        per_tile=cost(Work(tiles=1, kept=kept)),
        per_token=cost(Work(tokens=1)),
        per_token_pair=cost(Work(squares=1)),
        per_supervised_token=cost(Work(supervised=1)),
    )

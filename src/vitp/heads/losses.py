"""Losses of segmentation as SUMS: divided by the step's weight they are exact however the step is cut.

Shape legend: B images, K classes, H x W pixels.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional

from vitp.config import Config
from vitp.metrics.segmentation import IGNORE

TERMS = ("cross_entropy", "dice", "lovasz", "focal")


def _from_names(value: Any) -> Any:
    """``cross_entropy+dice`` stands for each of these terms with weight 1 and no other."""
    if not isinstance(value, str):
        return value
    names = [name.strip() for name in value.split("+")]
    unknown = [name for name in names if name not in TERMS]
    if unknown or len(set(names)) < len(names):
        raise ValueError(f"must join some of {', '.join(TERMS)} by +, each once, got '{value}'")
    return {name: 1.0 if name in names else 0.0 for name in TERMS}


class LossTerms(Config):
    """How much each loss counts. A recipe may also write ``loss: cross_entropy+dice`` (weight 1 each)."""

    cross_entropy: float = Field(default=1.0, ge=0)  # released configs: this alone
    dice: float = Field(default=0.0, ge=0)  # nnU-Net takes 1 beside cross-entropy
    lovasz: float = Field(default=0.0, ge=0)  # Lovasz-softmax, Berman et al. 2018
    focal: float = Field(default=0.0, ge=0)  # Lin et al. 2017, in the place of cross-entropy
    focal_gamma: float = Field(default=2.0, ge=0)  # Lin et al. 2017
    class_weights: list[float] | None = None  # one a class, of cross-entropy and focal loss; None: 1 each
    auxiliary_weight: float = Field(default=0.4, ge=0)  # mmsegmentation, where there is an auxiliary head
    average: Literal["labelled", "all"] = "labelled"  # all: over ignored pixels too, as in the released code

    @field_validator("class_weights")
    @classmethod
    def _not_negative(cls, weights: list[float] | None) -> list[float] | None:
        if weights is not None and (min(weights, default=0.0) < 0 or max(weights, default=0.0) <= 0):
            raise ValueError(f"weights must be at least 0 and one of them above, got {weights}")
        return weights

    @model_validator(mode="after")
    def _something(self) -> LossTerms:
        if not any(getattr(self, name) for name in TERMS):
            raise ValueError(f"every term is 0, so there is nothing to learn; set one of {', '.join(TERMS)}")
        return self


LossConfig = Annotated[LossTerms, BeforeValidator(_from_names)]


def segmentation_loss(
    logits: Tensor, masks: Tensor, config: LossTerms, *, weight: float, samples: int
) -> tuple[Tensor, dict[str, float]]:
    """The weighted sum of the configured terms over a micro-batch.

    Args:
        logits: [B, K, H, W].
        masks: class ids [B, H, W]; 255 is left out.
        config: which terms.
        weight: what the loop divides the step's sum by: its pixels.
        samples: images of the whole step. Terms of whole images (Dice, Lovasz) are averaged over them.

    Returns:
        the sum, and where there are several terms what each adds to the step's loss (before its weight), for the log.
    """
    logits = logits.float()
    classes = None if config.class_weights is None else logits.new_tensor(config.class_weights)
    an_image = weight / samples  # the loop divides by pixels: a mean over images is a sum in units of pixels an image
    total, logs = logits.new_zeros(()), dict[str, float]()
    shares: dict[str, float] = {name: getattr(config, name) for name in TERMS if getattr(config, name) > 0}
    for name, share in shares.items():
        if name == "cross_entropy":
            term = functional.cross_entropy(logits, masks.long(), classes, ignore_index=IGNORE, reduction="sum")
        elif name == "focal":
            term = focal_loss(logits, masks, config.focal_gamma, classes)
        elif name == "dice":
            term = soft_dice_loss(logits, masks) * an_image
        else:
            term = lovasz_softmax_loss(logits, masks) * an_image
        total = total + share * term
        if len(shares) > 1:
            logs[name if name == "cross_entropy" else f"{name}_loss"] = float(term.detach()) / weight
    return total, logs


def soft_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Sum over images of 1 - the mean over classes of the soft Dice (Milletari et al. 2016, without squares).

    Args:
        logits: [B, K, H, W].
        masks: class ids [B, H, W]; 255 is left out.

    A pixel is added to both sides of the fraction, so a class absent from label and prediction costs nothing.
    """
    truth, valid = _one_hot(masks, logits.shape[1])
    guess = logits.float().softmax(1) * valid
    both = (guess * truth).sum((2, 3))
    dice = (2 * both + 1) / (guess.sum((2, 3)) + truth.sum((2, 3)) + 1)  # [B, K]
    return (1 - dice.mean(1)).sum()


def focal_loss(logits: Tensor, masks: Tensor, gamma: float = 2.0, class_weights: Tensor | None = None) -> Tensor:
    """Sum over labelled pixels of -w_y (1 - p_y)^gamma log p_y, p the softmax (Lin et al. 2017, Eq. 5, for K classes).

    Args:
        logits: [B, K, H, W].
        masks: class ids y [B, H, W]; 255 is left out.
        gamma: 0 gives cross-entropy.
        class_weights: w [K]; None: 1 each.
    """
    labels = masks.long()
    entropy = functional.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="none")
    # the bound keeps the slope of a power below 1 finite where the prediction is perfect
    focal = (1.0 - (-entropy).exp()).clamp_min(1e-6) ** gamma * entropy
    if class_weights is not None:
        focal = focal * class_weights[labels.where(masks != IGNORE, 0)]
    return focal.sum()  # entropy is 0 at ignored pixels


def lovasz_softmax_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Sum over images of the Lovasz-softmax loss, a mean over the classes in the image's label (Berman et al. 2018).

    Args:
        logits: [B, K, H, W].
        masks: class ids [B, H, W]; 255 is left out, and an image without a label costs nothing.

    For class c let e_i be 1 - p_i(c) where pixel i is labelled c, and p_i(c) elsewhere. The Jaccard loss of c, as a function
    of the set M of wrong pixels, is |M| / |label or M| (Eq. 4). Its Lovasz extension adds up e_i in falling order, each
    times what its pixel adds to the loss of the pixels before it (Eq. 9): the first n contain h_n of the P labelled
    pixels, so that the union holds P + n - h_n, and the loss of that set is n / (P + n - h_n).
    """
    truth, valid = _one_hot(masks, logits.shape[1])
    # an ignored pixel has error 0: it comes last, after everything that costs something, and costs nothing itself
    errors = ((truth - logits.float().softmax(1)).abs() * valid).flatten(2)  # [B, K, N]
    errors, order = errors.sort(dim=2, descending=True)
    hit = truth.flatten(2).gather(2, order)
    hits = hit.cumsum(2)
    count = torch.arange(1, errors.shape[2] + 1, device=errors.device, dtype=errors.dtype)
    labelled = hits[..., -1:]  # P, [B, K, 1]
    union = labelled + count - hits
    # n / U minus its value at n - 1, without the cancellation: a labelled pixel leaves U as it is, another adds 1 to it
    steps = torch.where(hit > 0, 1.0 / union, (labelled - hits) / (union * (union - 1).clamp_min(1.0)))
    losses = (errors * steps).sum(2)  # [B, K]
    present = (labelled[..., 0] > 0).to(losses.dtype)
    return ((losses * present).sum(1) / present.sum(1).clamp_min(1.0)).sum()


def _one_hot(masks: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Labels [B, K, H, W] of 0 and 1 (all 0 where ignored) and which pixels have one, [B, 1, H, W], both fp32."""
    valid = (masks != IGNORE).unsqueeze(1)
    truth = functional.one_hot(masks.long().where(masks != IGNORE, 0), classes).movedim(-1, 1) * valid
    return truth.float(), valid.float()

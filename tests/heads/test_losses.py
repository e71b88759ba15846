"""Losses against slow references written from the papers' definitions, and as sums that do not care how a step is cut."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor
from torch.nn import functional

from vitp.heads.losses import LossConfig, LossTerms, focal_loss, lovasz_softmax_loss, segmentation_loss, soft_dice_loss
from vitp.metrics.segmentation import IGNORE


def _example(classes: int, seed: int = 0, batch: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(batch, classes, 5, 6, generator=generator, requires_grad=False)
    masks = torch.randint(0, classes, (batch, 5, 6), generator=generator).to(torch.uint8)
    masks[0, 0] = IGNORE
    masks[1] = 0  # one class alone
    return logits.requires_grad_(), masks


def _jaccard_loss(wrong: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """|M| / |label or M| of a set M of wrong pixels: 1 - intersection over union when exactly M is wrong."""
    union = (truth | wrong).sum()
    return float(wrong.sum() / union) if union else 0.0


def _slow_lovasz(logits: Tensor, masks: Tensor) -> float:
    """The Lovasz extension from its definition: sort, and take what each pixel adds to the set function."""
    total = 0.0
    for scores, labels in zip(logits.detach().double().softmax(1).numpy(), masks.numpy(), strict=True):
        kept = labels != IGNORE
        losses = []
        for c in np.unique(labels[kept]):
            truth, p = labels[kept] == c, scores[c][kept]
            errors = np.where(truth, 1 - p, p)
            wrong, before, loss = np.zeros_like(truth), 0.0, 0.0
            for i in np.argsort(-errors):
                wrong[i] = True
                value = _jaccard_loss(wrong, truth)
                loss += errors[i] * (value - before)
                before = value
            losses.append(loss)
        total += float(np.mean(losses)) if losses else 0.0
    return total


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_lovasz_softmax_against_its_definition(classes: int) -> None:
    for seed in range(3):
        logits, masks = _example(classes, seed)
        assert float(lovasz_softmax_loss(logits, masks).detach()) == pytest.approx(
            _slow_lovasz(logits, masks), rel=1e-5
        )
    nothing = torch.full_like(masks, IGNORE)
    assert float(lovasz_softmax_loss(logits, nothing)) == 0.0
    loss = lovasz_softmax_loss(logits, nothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient.abs().max()) == 0.0


def test_lovasz_at_certain_predictions_is_the_jaccard_loss() -> None:
    """At the corners of the cube the extension is the set function itself (Berman et al., Definition 1)."""
    truth = torch.tensor([[[0, 1, 1, 0, 1]]], dtype=torch.uint8)
    for guess in product((0, 1), repeat=5):
        predicted = torch.tensor(guess).view(1, 1, 5)
        logits = 200.0 * functional.one_hot(predicted, 2).movedim(-1, 1).float()
        expected = 0.0
        for c in (0, 1):
            t, p = truth == c, predicted == c
            expected += 1 - float((t & p).sum() / (t | p).sum())
        assert float(lovasz_softmax_loss(logits, truth)) == pytest.approx(expected / 2, abs=1e-6)


def test_lovasz_gradient_against_differences() -> None:
    logits, masks = _example(3, 1, batch=2)
    (gradient,) = torch.autograd.grad(lovasz_softmax_loss(logits, masks), logits)
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(9))
    step = 1e-4
    up, down = (_slow_lovasz(logits.detach().double() + s * direction, masks) for s in (step, -step))
    assert float((gradient * direction).sum()) == pytest.approx((up - down) / (2 * step), rel=1e-3)


def test_lovasz_steps_are_exact_on_a_large_image() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 300, 300, generator=generator)
    masks = (torch.rand(1, 300, 300, generator=generator) < 0.02).to(torch.uint8)
    assert float(lovasz_softmax_loss(logits, masks)) == pytest.approx(_slow_lovasz(logits[:, :, :, :], masks), rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_against_numpy(gamma: float) -> None:
    logits, masks = _example(3)
    weights = np.array([0.5, 2.0, 1.0])
    p = logits.detach().double().softmax(1).numpy()
    expected = 0.0
    for b, y, x in np.argwhere(masks.numpy() != IGNORE):
        label = int(masks[b, y, x])
        chance = p[b, label, y, x]
        expected += -weights[label] * (1 - chance) ** gamma * np.log(chance)
    loss = focal_loss(logits, masks, gamma, torch.tensor(weights, dtype=torch.float32))
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.isfinite(gradient).all()
    certain = (
        functional.one_hot(masks.long().where(masks != IGNORE, 0), 3).movedim(-1, 1).float().mul(500).requires_grad_()
    )
    (gradient,) = torch.autograd.grad(focal_loss(certain, masks, gamma), certain)
    assert torch.isfinite(gradient).all()


def test_ignored_pixels_change_nothing() -> None:
    config = LossTerms(cross_entropy=1, dice=1, lovasz=1, focal=1, class_weights=[1.0, 2.0, 3.0])
    logits, masks = _example(3)
    other = logits.detach().clone()
    other[0, :, 0] = torch.randn(3, 6) * 50
    a, b = (segmentation_loss(x, masks, config, weight=10.0, samples=4)[0] for x in (logits, other))
    assert float(a) == pytest.approx(float(b), rel=1e-6)
    (gradient,) = torch.autograd.grad(a, logits)
    assert float(gradient[0, :, 0].abs().max()) == 0.0


def test_weighted_cross_entropy_and_terms_add_up() -> None:
    logits, masks = _example(3)
    weights = torch.tensor([1.0, 2.0, 3.0])
    entropy = functional.cross_entropy(logits, masks.long(), weights, ignore_index=IGNORE, reduction="sum")
    config = LossTerms(dice=0.5, class_weights=[1.0, 2.0, 3.0])
    total, logs = segmentation_loss(logits, masks, config, weight=100.0, samples=4)
    expected = entropy + 0.5 * soft_dice_loss(logits, masks) * 25.0
    assert float(total) == pytest.approx(float(expected), rel=1e-6)
    assert logs["cross_entropy"] == pytest.approx(float(entropy) / 100, rel=1e-6)
    assert logs["dice_loss"] == pytest.approx(float(soft_dice_loss(logits, masks)) / 4, rel=1e-6)
    assert segmentation_loss(logits, masks, LossTerms(), weight=100.0, samples=4)[1] == {}


def test_names_joined_by_plus_and_mistakes() -> None:
    class Recipe(BaseModel):
        loss: LossConfig = LossTerms()

    read = Recipe.model_validate
    assert read({"loss": "cross_entropy+dice"}).loss == LossTerms(dice=1.0)
    assert read({"loss": "focal + lovasz"}).loss == LossTerms(cross_entropy=0.0, focal=1.0, lovasz=1.0)
    assert read({"loss": {"dice": 0.3}}).loss == LossTerms(dice=0.3)
    assert Recipe.model_validate(read({"loss": "dice"}).model_dump()) == read({"loss": "dice"})
    bad: list[Any] = ["dise", "dice+dice", {"cross_entropy": 0.0}, {"class_weights": [-1.0, 2.0]}, {"dicee": 1.0}]
    for loss in bad:
        with pytest.raises(ValidationError):
            read({"loss": loss})

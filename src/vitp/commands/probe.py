"""`vitp probe`: what a backbone's frozen features are worth, by logistic regression and by nearest neighbours.

Features are means over patch tokens. They are standardised with the mean and deviation of the labelled training images
alone. The linear probe is multinomial logistic regression to convergence (L-BFGS, float64), its L2 strength chosen on
a held-out part of the training labels; the neighbours vote with exp(cosine / temperature) (Wu et al. 2018).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.v2 import functional as images

from vitp.backbone.vit import BackboneConfig, ViTBackbone
from vitp.commands.finetune import start_backbone
from vitp.config import Config
from vitp.datasets.folder import LabelledConfig, few_shot, read_labelled, split_stratified
from vitp.errors import TrainingError
from vitp.images.read import ImageConfig, read_image
from vitp.recipes import load_recipe
from vitp.train.loop_config import choose_device, uses_bf16

# L2 strengths on the mean cross-entropy, strong to weak; in scikit-learn's terms C = 1 / (images * strength)
STRENGTHS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
_HELD_OUT = 0.25  # of the training labels, to choose the strength
_UNCHOSEN = 0.1  # strength where one label a class leaves nothing to hold out


class ProbeConfig(Config):
    """A probing recipe."""

    name: str
    backbone: Path | None = None  # a file of `vitp export` or a timm folder; None: random weights
    backbone_config: BackboneConfig | None = None  # which ViT, where its weights are random
    backbone_seed: int = Field(default=0, ge=0)  # of random weights
    data: LabelledConfig
    labels_per_class: int | None = Field(default=None, ge=1)  # None: all training images
    label_seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)  # a draw each; with all labels: one
    image_size: int | None = Field(default=None, ge=8)  # side images are resized to, pixels; None: the backbone's own
    layers: int = Field(default=1, ge=1)  # last blocks side by side (DINOv2 probes: 1 or 4)
    flip: bool = False  # average the features of an image and its mirror image
    neighbours: int = Field(default=20, ge=1)  # DINO
    temperature: float = Field(default=0.07, gt=0)  # Wu et al. 2018, DINO
    batch_size: int = Field(default=64, ge=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of the backbone; the probes are float64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=4, ge=1)  # that decode images

    @model_validator(mode="after")
    def _one_backbone(self) -> ProbeConfig:
        if self.backbone is None and self.backbone_config is None:
            raise ValueError("backbone is missing: give a weights file, or backbone_config for random weights")
        if self.backbone is not None and self.backbone_config is not None:
            raise ValueError("backbone and backbone_config are both given; the weights file says which ViT it holds")
        return self


@dataclass(frozen=True)
class ProbeResult:
    """Accuracies on the test images, 0 ... 1, one for each draw of labels."""

    linear: tuple[float, ...]
    knn: tuple[float, ...]
    strengths: tuple[float, ...]  # the L2 strength chosen in each draw
    classes: tuple[str, ...]
    train_images: int  # labelled images of one draw
    test_images: int
    features_per_second: float  # images through the backbone, decoding included
    linear_seconds: float  # one linear probe, choice of the strength included

    @property
    def numbers(self) -> dict[str, Any]:
        """JSON-ready; `_sd` is the standard deviation over the draws (None for a single one)."""
        return {
            "linear_mean": statistics.fmean(self.linear),
            "linear_sd": statistics.stdev(self.linear) if len(self.linear) > 1 else None,
            "knn_mean": statistics.fmean(self.knn),
            "knn_sd": statistics.stdev(self.knn) if len(self.knn) > 1 else None,
            "draws": len(self.linear),
            "classes": len(self.classes),
            "train_images": self.train_images,
            "test_images": self.test_images,
            "strengths": list(self.strengths),
            "features_per_second": round(self.features_per_second, 1),
            "linear_seconds": round(self.linear_seconds, 3),
        }


# ------------------------------------------------------------------------------------------------------------- features


def _batches(files: Sequence[Path], reading: ImageConfig, size: int, batch: int, threads: int) -> Iterator[Tensor]:
    """Images uint8 [B, 3, size, size]; the next batch is decoded while the caller works on this one."""

    def read(file: Path) -> Tensor:
        resized: Tensor = images.resize(read_image(file, reading), [size, size], antialias=True)
        return resized

    chunks = [files[i : i + batch] for i in range(0, len(files), batch)]
    with ThreadPoolExecutor(threads) as pool:
        ahead = [pool.submit(read, file) for file in chunks[0]] if chunks else []
        for i in range(len(chunks)):
            ready = ahead
            ahead = [pool.submit(read, file) for file in chunks[i + 1]] if i + 1 < len(chunks) else []
            yield torch.stack([job.result() for job in ready])


@torch.no_grad()
def extract_features(backbone: ViTBackbone, files: Sequence[Path], config: ProbeConfig) -> Tensor:
    """Mean-pooled patch features of each image, float32 [N, C * layers], on the CPU.

    Images are resized (not cropped) to a square of `image_size`; `flip` averages over the mirror image.

    Raises:
        DataError: an image cannot be read.
        TrainingError: `layers` exceeds the backbone's depth, or a feature is not finite.
    """
    if config.layers > backbone.depth:
        raise TrainingError(f"layers: {config.layers} wanted, the backbone has {backbone.depth} blocks; lower it")
    device = choose_device(config.device)
    size = config.image_size or backbone.config.image_size
    backbone = backbone.to(device).eval()
    found = []
    for batch in _batches(files, config.data.images, size, config.batch_size, config.threads):
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(config.precision, device)):
            pooled = backbone.pooled(batch, config.layers)
            if config.flip:
                pooled = (pooled + backbone.pooled(batch.flip(-1), config.layers)) / 2
        found.append(pooled.float().cpu())
    features = torch.cat(found)
    if not torch.isfinite(features).all():
        at = int((~torch.isfinite(features).all(1)).nonzero()[0])
        raise TrainingError(f"the backbone's features of {files[at]} are not finite; try precision: fp32")
    return features


# --------------------------------------------------------------------------------------------------------------- probes


@dataclass(frozen=True)
class LinearProbe:
    """weight [K, D] and bias [K] of a multinomial logistic regression, float64."""

    weight: Tensor
    bias: Tensor

    def predict(self, features: Tensor) -> Tensor:
        """Features [N, D] to class ids [N]."""
        return functional.linear(features.double(), self.weight, self.bias).argmax(1)


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    strength: float,
    *,
    start: LinearProbe | None = None,
    tolerance: float = 1e-4,
) -> LinearProbe:
    """Minimise mean cross-entropy + strength / 2 * ||weight||^2 (the bias is free).

    scikit-learn's LogisticRegression(C = 1 / (N * strength)) has the same minimum.

    Args:
        features: [N, D].
        labels: class ids [N].
        classes: number of classes K.
        strength: of the L2 penalty, above 0.
        start: where to begin; None: zeros.
        tolerance: largest entry of the gradient to stop at (1e-4: scikit-learn).

    Raises:
        TrainingError: L-BFGS did not converge.
    """
    x, y = features.double(), labels.long()
    # with more features than images the minimum lies in the span of the images (representer theorem): work there
    span = torch.linalg.qr(x.T)[0] if x.shape[1] > x.shape[0] else None  # [D, N]
    x = x if span is None else x @ span
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64)
    if start is not None:
        weight = start.weight.clone() if span is None else start.weight @ span
    bias = start.bias.clone() if start else torch.zeros(classes, dtype=torch.float64)
    weight.requires_grad_(True)
    bias.requires_grad_(True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=5000,
        tolerance_grad=tolerance,
        tolerance_change=1e-16,
        history_size=10,  # scikit-learn's
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        loss = functional.cross_entropy(functional.linear(x, weight, bias), y) + 0.5 * strength * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with _few_threads(x.numel() * classes):
        solver.step(closure)  # type: ignore[no-untyped-call]
        closure()
    assert weight.grad is not None
    slope = float(weight.grad.abs().max())
    if not slope < 10 * tolerance:
        raise TrainingError(f"the linear probe did not converge (gradient {slope:.2g}); are the features finite?")
    found = weight.detach()
    return LinearProbe(found if span is None else found @ span.T, bias.detach())


@contextmanager
def _few_threads(products: int) -> Iterator[None]:
    """One thread while a step has fewer `products` than pay for waking others: 8 times faster on a busy machine."""
    threads = torch.get_num_threads()
    if products < 2**25:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def choose_strength(features: Tensor, labels: Tensor, classes: int, seed: int) -> float:
    """The L2 strength with the lowest cross-entropy on a stratified held-out part of the training labels.

    Cross-entropy, because accuracy on a hundred images is too coarse to tell strengths apart. From strong to weak,
    each fit starts where the last one ended, until it gets worse: the rest overfits more. With a single label in some
    class a fixed strength is taken.
    """
    counts = torch.bincount(labels, minlength=classes)
    if int(counts[counts > 0].min()) < 2:
        return _UNCHOSEN
    fit, held = (torch.tensor(part) for part in split_stratified(labels.tolist(), _HELD_OUT, seed))
    best, at = math.inf, STRENGTHS[0]
    probe: LinearProbe | None = None
    for strength in STRENGTHS:
        probe = fit_linear(features[fit], labels[fit], classes, strength, start=probe, tolerance=1e-3)
        logits = functional.linear(features[held].double(), probe.weight, probe.bias)
        entropy = float(functional.cross_entropy(logits, labels[held]))
        if entropy >= best:
            break
        best, at = entropy, strength
    return at


def nearest(train: Tensor, labels: Tensor, test: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    """Class ids [M] of `test` [M, D]: the k most similar of `train` [N, D] vote with exp(cosine / temperature)."""
    a, b = functional.normalize(train.double(), dim=1), functional.normalize(test.double(), dim=1)
    found = []
    for part in torch.split(b, 1024):
        similarity, which = (part @ a.T).topk(min(k, len(a)), dim=1)
        votes = torch.zeros(len(part), classes, dtype=torch.float64)
        votes.scatter_add_(1, labels[which], ((similarity - 1.0) / temperature).exp())
        found.append(votes.argmax(1))
    return torch.cat(found)


def standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both in units of the training features' deviation from their mean; constant features become 0."""
    mean, deviation = train.double().mean(0), train.double().std(0, correction=0)
    deviation = torch.where(deviation > 1e-12, deviation, torch.inf)
    return (train.double() - mean) / deviation, (test.double() - mean) / deviation


# -------------------------------------------------------------------------------------------------------------- command


def probe(
    recipe: ProbeConfig | Path | str,
    overrides: Sequence[str] = (),
    *,
    backbone: ViTBackbone | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> ProbeResult:
    """Measure frozen features: linear probe and nearest neighbours on the test images.

    Args:
        recipe: a ProbeConfig, a YAML file, or the name of a recipe that ships with vitp.
        overrides: dotted overrides, ``a.b.0.c=value``.
        backbone: a loaded one, instead of the recipe's.
        say: receives lines worth reading (which weights, how many images).

    Raises:
        VitpError: any mistake the user can mend.
    """
    config = load_recipe(ProbeConfig, recipe, overrides)
    train, test = read_labelled(config.data)
    if config.labels_per_class is None:
        draws = [list(range(len(train)))]
    else:
        draws = [few_shot(train.labels, config.labels_per_class, seed, train.classes) for seed in config.label_seeds]
    used = sorted(set().union(*draws))
    say(f"data: {len(draws[0])} labelled images in {len(train.classes)} classes, {len(test)} test images")
    if backbone is None:
        backbone = start_backbone(config.backbone, config.backbone_config, config.backbone_seed, say)
    begun = time.perf_counter()
    features = extract_features(backbone, [train.files[i] for i in used] + list(test.files), config)
    per_second = len(features) / (time.perf_counter() - begun)
    of_train, of_test = dict(zip(used, features[: len(used)], strict=True)), features[len(used) :]
    truth, measured = torch.tensor(test.labels), []
    for draw, seed in zip(draws, config.label_seeds, strict=False):
        labels = torch.tensor([train.labels[i] for i in draw])
        known = torch.stack([of_train[i] for i in draw])
        measured.append(_measure(known, labels, of_test, truth, config, len(train.classes), seed))
    linear, knn, strengths, seconds = zip(*measured, strict=True)
    return ProbeResult(
        linear=linear,
        knn=knn,
        strengths=strengths,
        classes=train.classes,
        train_images=len(draws[0]),
        test_images=len(test),
        features_per_second=per_second,
        linear_seconds=statistics.fmean(seconds),
    )


def _measure(
    known: Tensor, labels: Tensor, unknown: Tensor, truth: Tensor, config: ProbeConfig, classes: int, seed: int
) -> tuple[float, float, float, float]:
    """(accuracy of the linear probe, of the neighbours, strength, seconds of the linear probe) of one draw."""
    known, unknown = standardise(known, unknown)
    begun = time.perf_counter()
    strength = choose_strength(known, labels, classes, seed)
    linear = fit_linear(known, labels, classes, strength).predict(unknown)
    seconds = time.perf_counter() - begun
    voted = nearest(known, labels, unknown, classes, config.neighbours, config.temperature)
    right, near = (float((guess == truth).double().mean()) for guess in (linear, voted))
    return right, near, strength, seconds

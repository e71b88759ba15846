"""One training step of Faster R-CNN with ResNet-50-FPN: our RPN and RoI head against torchvision's own model, A B A B.

    python -m bench.detect_step --json

Both have torchvision's backbone with random weights and its settings (256 sampled anchors, 2000 proposals, 512 sampled of them,
91 outputs, 7 x 7 cells of 2 x 2 points), and get the same images and boxes; a step is forward, backward and SGD. The time is
that of the process on all its cores (`--wall` for the clock). `vs_torchvision` is rival over ours: above 1, ours is faster;
`heads` is the same without what the backbone costs both. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from vitp.heads.detector_config import FasterRCNNConfig, FasterRoI, PlainRPN
from vitp.heads.pool import PoolConfig
from vitp.heads.truth import Truth
from vitp.heads.two_stage import TwoStage

_STRIDES = (4, 8, 16, 32, 64)
_CLASSES = 90


class Ours(nn.Module):
    """torchvision's backbone under our head."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head: TwoStage = FasterRCNNConfig(
            kind="faster_rcnn",
            rpn=PlainRPN(beta=1 / 9, train_proposals=2000),
            roi=FasterRoI(pool=PoolConfig(sampling=2), beta=1 / 9),
        ).build(256, _CLASSES, _STRIDES)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images: Tensor, truth: list[Truth], step: int) -> dict[str, Tensor]:
        """Losses of images [B, 3, H, W], 0-1."""
        maps = list(self.backbone((images - self.mean) / self.std).values())
        sizes = [(int(images.shape[-2]), int(images.shape[-1]))] * len(images)
        losses = self.head.losses(maps, truth, sizes, [(0, step, i) for i in range(len(images))])
        return {name: value / len(images) for name, value in losses.items()}


def scene(images: int, side: int, objects: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Noise with bright boxes; boxes [n, 4] and classes [n] of each image."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 3, side, side, generator=g) * 0.4
    boxes, labels = [], []
    for image in pixels:
        size = 16 + torch.rand(objects, 2, generator=g) * side / 5
        corner = torch.rand(objects, 2, generator=g) * (side - size)
        boxes.append(torch.cat((corner, corner + size), 1))
        labels.append(torch.randint(0, _CLASSES, (objects,), generator=g))
        for x1, y1, x2, y2 in boxes[-1].int().tolist():
            image[:, y1:y2, x1:x2] += 0.5
    return pixels, boxes, labels


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    begun = clock()
    work()
    return clock() - begun


def stepper(model: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> Callable[[], None]:
    """One training step of `model`."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses().values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--objects", type=int, default=20, help="in an image")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--wall", action="store_true", help="time by the clock, not the CPU's")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    clock = time.perf_counter if args.wall else time.process_time
    torch.manual_seed(0)
    pixels, boxes, labels = scene(args.images, args.side, args.objects)
    theirs = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=_CLASSES + 1, min_size=args.side, max_size=args.side
    ).train()
    torch.manual_seed(0)
    twin = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=_CLASSES + 1)
    ours = Ours(twin.backbone).train()
    truth = [Truth(b, k, b.new_zeros(0, 4)) for b, k in zip(boxes, labels, strict=True)]
    targets = [{"boxes": b, "labels": k + 1} for b, k in zip(boxes, labels, strict=True)]
    count = iter(range(1 << 30))
    rival = stepper(theirs, lambda: theirs(list(pixels), targets))
    own = stepper(ours, lambda: ours(pixels, truth, next(count)))

    def backbone() -> None:
        maps = ours.backbone(pixels)
        torch.stack([m.sum() for m in maps.values()]).sum().backward()  # type: ignore[no-untyped-call]

    rival(), own(), backbone()
    ratios, heads, seconds = [], [], []
    for i in range(args.rounds):
        order = (rival, own) if i % 2 == 0 else (own, rival)
        took = {work: timed(work, clock) for work in order}
        shared = timed(backbone, clock)
        ratios.append(took[rival] / took[own])
        heads.append((took[rival] - shared) / max(took[own] - shared, 1e-9))
        seconds.append(took[own])
    result = {
        "threads": torch.get_num_threads(),
        "images": args.images,
        "side": args.side,
        "clock": "wall" if args.wall else "cpu",
        "seconds": round(statistics.median(seconds), 3),
        "heads": round(statistics.median(heads), 2),
        "vs_torchvision": round(statistics.median(ratios), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

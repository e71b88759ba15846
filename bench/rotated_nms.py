"""Rotated NMS of 2000 boxes against shapely with the greedy rule, and against OpenCV's NMSBoxesRotated, A B A B.

    python -m bench.rotated_nms --json

400 boxes, five jittered copies of each, as a detector gives them; threshold 0.1 (as released). OpenCV gets its rectangles
ready made. Ratios are rival over ours: above 1, ours is faster; `vs_opencv` is null where OpenCV is not installed.
`same_as_shapely` and `same_as_opencv` say whether the kept sets are equal. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import importlib.util
import json

import numpy as np
import torch
from torch import Tensor

from bench.attention import ratio
from bench.rotated_iou import scene, shapely_matrix
from vitp.boxes.formats import to_opencv
from vitp.boxes.nms import rotated_nms

THRESHOLD = 0.1


def crowd(count: int) -> tuple[Tensor, Tensor]:
    """Clusters of five boxes and their scores."""
    boxes = scene(count // 5, 3).repeat(5, 1)
    g = torch.Generator().manual_seed(4)
    boxes[:, :2] += torch.randn(len(boxes), 2, generator=g) * 4
    boxes[:, 4] += torch.randn(len(boxes), generator=g) * 0.05
    return boxes, torch.rand(len(boxes), generator=g)


def by_shapely(boxes: Tensor, scores: Tensor) -> list[int]:
    order = scores.argsort(descending=True, stable=True)
    over = shapely_matrix(boxes[order], boxes[order]) > THRESHOLD
    keep = np.ones(len(boxes), dtype=bool)
    for k in range(len(boxes)):
        if keep[k]:
            keep[k + 1 :] &= ~over[k, k + 1 :]
    return [int(n) for n in order[torch.from_numpy(keep)]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON (always done)")
    args = parser.parse_args()
    boxes, scores = crowd(args.boxes)

    def ours() -> None:
        rotated_nms(boxes, scores, THRESHOLD)

    kept = rotated_nms(boxes, scores, THRESHOLD).tolist()
    result: dict[str, object] = {"threads": torch.get_num_threads(), "boxes": args.boxes, "kept": len(kept)}
    result["vs_shapely"] = round(ratio(lambda: by_shapely(boxes, scores), ours, args.rounds), 2)
    result["same_as_shapely"] = by_shapely(boxes, scores) == kept
    result["vs_opencv"] = None
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(torch.get_num_threads())
        ready = [((cx, cy), (w, h), degrees) for cx, cy, w, h, degrees in to_opencv(boxes).tolist()]
        values = scores.tolist()

        def opencv() -> list[int]:
            return [int(n) for n in cv2.dnn.NMSBoxesRotated(ready, values, 0.0, THRESHOLD)]

        result["vs_opencv"] = round(ratio(opencv, ours, args.rounds), 2)
        result["same_as_opencv"] = opencv() == kept
    print(json.dumps(result))


if __name__ == "__main__":
    main()

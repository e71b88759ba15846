"""The detection data sets of `bench.results`: recipes that ship with vitp, at the sizes they have there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitp.commands.prepare import prepare


@dataclass(frozen=True)
class DetectSet:
    """A data set of the table, in one form of its labels."""

    name: str
    folder: str  # under --data
    recipe: str  # recipes/finetune
    metric: Literal["AP50", "mask_AP50", "mAP_voc07"]  # what its field reports
    overrides: tuple[str, ...] = ()
    patches: tuple[int, int] | None = None  # side and overlap of the patches that its images are cut into first
    domain = "detect"


_SMALL = "rpn: {channels: 64, anchors: {scales: [2, 4]}, per_level: 500, train_proposals: 300, test_proposals: 300}"
_ROI = "roi: {width: 256, sampler: {count: 64}}"
_UPRIGHT = ("boxes=upright", "data.quads=null")
DETECT_SETS = (
    DetectSet("ssdd_rotated", "ssdd", "ssdd_oriented", "mAP_voc07"),
    DetectSet("ssdd_boxes", "ssdd", "ssdd_oriented", "AP50",
              (*_UPRIGHT, f"detector={{kind: faster_rcnn, {_SMALL}, {_ROI}}}")),
    DetectSet("ssdd_masks", "ssdd", "ssdd_oriented", "mask_AP50",
              (*_UPRIGHT, "data.outlines=true", f"detector={{kind: mask_rcnn, {_SMALL}, {_ROI}, mask: {{channels: 64}}}}")),
    DetectSet("nwpu_vhr10", "nwpu_vhr10", "nwpu_vhr10", "AP50"),
    DetectSet("bccd", "bccd", "bccd", "AP50"),
    DetectSet("dota_example", "dota_example", "dota_example", "mAP_voc07", (), (320, 64)),
)  # fmt: skip


def cut_patches(entry: DetectSet, data: Path, out: Path) -> Path:
    """The folder of the patches of a data set; what is missing of them is written.

    Raises:
        VitpError: a file is missing or cannot be used.
    """
    assert entry.patches is not None
    folder = out / "data" / entry.name
    prepare("dota_v1", data / entry.folder, folder, tile=entry.patches[0], overlap=entry.patches[1])
    return folder

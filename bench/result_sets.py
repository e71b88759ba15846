"""The labelled data sets of `bench.results`: where their files lie, and their images cut into small pieces once.

All of them are samples of a few images. Pictures are shrunk where a small ViT could not see them, and cut into pieces so
that a step need not decode a large file; scores are of these pieces. A split never parts pieces of one group: the image,
the patient where file names or a table tell them, the city.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from vitp.datasets.labels import LabelReader
from vitp.datasets.layout import belonging, find_images, group_of, stem_of
from vitp.datasets.masks import MaskFolderConfig
from vitp.datasets.pairs import CHANGE_CLASSES, PairFolderConfig
from vitp.datasets.patches import paste_patches
from vitp.datasets.prepare import save_png
from vitp.files import write_json
from vitp.images.raster import RasterConfig
from vitp.images.read import ImageConfig, read_image

_DONE = "pieces.json"
Domain = Literal["remote", "medical"]


@dataclass(frozen=True)
class ResultSet:
    """A data set of the table."""

    name: str
    folder: str  # under --data
    domain: Domain
    metric: Literal["miou", "mdice_foreground", "f1_changed"]  # what its field reports
    layout: Mapping[str, Any]  # of MaskFolderConfig, or of PairFolderConfig where it has `after`
    piece: int = 256  # no piece is wider or higher
    longest: int | None = None  # side to which larger pictures are shrunk first
    rare: float = 1.0  # weight in the loss of every class but the first; short runs find nothing of rare ones without
    by_piece: bool = False  # one image only: its pieces are divided, neighbours or not
    test_fraction: float = 0.4
    note: str = ""
    before: Callable[[Path, Path], Mapping[str, Any]] | None = None  # (root, folder to write to) -> more of `layout`
    groups: Callable[[Path], Mapping[str, str]] | None = None  # root -> image stem -> group

    @property
    def pairs(self) -> bool:
        """Whether it is of two dates."""
        return "after" in self.layout


def _paste_chest(root: Path, out: Path) -> Mapping[str, Any]:
    """Masks of the chest structures, whose patches overlap: the heart lies over the lungs, opacities over both."""
    found = {
        "COVID-19 Left Lung": 1,
        "COVID-19 Right Lung": 1,
        "COVID-19 Cardiomediastinum": 2,
        "COVID-19 Ground Glass Opacities": 3,
        "COVID-19 Consolidation": 3,
    }
    paste_patches(root / "structure.csv", root / "images", out / "whole", found)
    return {"masks": str((out / "whole").resolve())}


def _patients(root: Path) -> Mapping[str, str]:
    with (root / "metadata.csv").open(encoding="utf-8-sig", newline="") as stream:
        return {stem_of(Path(row["filename"])): f"patient{row['patientid']}" for row in csv.DictReader(stream)}


_PAIR = {"images": "A/*.png", "after": "B/{name}", "masks": "label/{name}"}
_LOVEDA = ["background", "building", "road", "water", "barren", "forest", "agriculture"]
_POTSDAM = ["impervious surface", "building", "low vegetation", "tree", "car", "clutter"]
_S2: dict[str, Any] = {
    "images": "images/*.tif", "parts": r"(?P<date>\d+)_patchN_(?P<number>\d+)", "masks": "labels/{date}_mask_{number}.tif",
    "classes": ["building", "road", "field", "forest", "other"], "labels": {10: 0, 30: 1, 50: 2, 70: 3, 100: 4},
    "background": None, "reader": ImageConfig(raster=RasterConfig(bands=(3, 2, 1), mask=False)),
}  # fmt: skip
_OSCD = {
    "images": "Images/*/pair/img1.png", "parts": r"Images/(?P<city>[^/]+)/", "group": "Images/([^/]+)/",
    "after": "{folder}/img2.png", "masks": "Train Labels/{city}/cm/cm.png",
}  # fmt: skip
_BUSI = {
    "images": "*/*.png", "exclude": "*/*_mask*.png", "masks": "{folder}/{stem}_mask*.png",
    "classes": ["background", "lesion"], "labels": {0: 0, 255: 1},
}  # fmt: skip
_TUMOURS = [(0, 0, 255), (0, 255, 0), (255, 0, 0)]
_BRISC = {
    "images": "images/*.png", "masks": "masks/{name}", "classes": ["background", "tumour"],
    "colours": {"background": (0, 0, 0), "tumour": _TUMOURS},
}  # fmt: skip
_CURVAS = {
    "images": "images/*.png", "masks": "masks/{name}", "group": r"images/(\d+)_",
    "classes": ["background", "pancreas", "kidney", "liver"],
    "colours": {"background": (0, 0, 0), "pancreas": (0, 255, 255), "kidney": (255, 255, 0), "liver": (255, 0, 255)},
}  # fmt: skip
_CHASE = {
    "images": "*.jpg", "masks": "{stem}_1stHO.png", "group": r"Image_(\d+)", "classes": ["background", "vessel"],
    "labels": {0: 0, 255: 1},
}  # fmt: skip
_CHEST = {"images": "images/*", "masks": "", "classes": ["background", "lung", "heart", "opacity"]}
_OAM = {"images": "chips/*.tif", "masks": "binarymasks/{stem}.mask.tif", "classes": ["background", "building"]}

SETS = (
    ResultSet("loveda", "rs_seg_samples/loveda", "remote", "miou",
              {"images": "img_dir/*.png", "masks": "ann_dir/{name}", "classes": _LOVEDA, "reduce_zero_label": True},
              test_fraction=0.5, note="2 images of 1,024: learns one, tested on the other"),
    ResultSet("potsdam", "rs_seg_samples/potsdam", "remote", "miou",
              {"images": "img_dir/*.png", "masks": "ann_dir/{name}", "classes": _POTSDAM, "reduce_zero_label": True,
               "background": None}, by_piece=True, test_fraction=0.5, note="1 image: half its quarters are tested"),
    ResultSet("oam_buildings", "oam_buildings", "remote", "miou", _OAM),
    ResultSet("s2_landcover", "s2_landcover", "remote", "miou", _S2, test_fraction=0.5),
    ResultSet("levir_cd", "levir_cd_samples", "remote", "f1_changed", _PAIR),
    ResultSet("dsifn", "dsifn_samples", "remote", "f1_changed", _PAIR),
    ResultSet("oscd_rgb", "oscd_rgb", "remote", "f1_changed", _OSCD, note="divided by city"),
    ResultSet("covid_cxr_seg", "covid_cxr_seg", "medical", "mdice_foreground", _CHEST, longest=256, before=_paste_chest,
              groups=_patients, note="by patient; opacities lie over heart, heart over lungs"),
    ResultSet("busi", "busi", "medical", "mdice_foreground", _BUSI, longest=256, rare=4.0),
    ResultSet("brisc_mri", "brisc_mri", "medical", "mdice_foreground", _BRISC, longest=256, rare=4.0,
              note="three kinds of tumour as one"),
    ResultSet("chase_db1", "chase_db1", "medical", "mdice_foreground", _CHASE, longest=512, rare=10.0, note="by child"),
    ResultSet("curvas_ct", "curvas_ct", "medical", "mdice_foreground", _CURVAS, longest=256, note="by patient"),
)  # fmt: skip


def prepared(entry: ResultSet, data: Path, out: Path) -> MaskFolderConfig | PairFolderConfig:
    """The data set as pieces in `out`, written unless they are there; its split is to be set (`data.split_seed`).

    Raises:
        VitpError: a file is missing or cannot be used.
    """
    root = data / entry.folder
    classes, background = _write(entry, root, out)
    fields: dict[str, Any] = {
        "root": out,
        "images": "images/*.png",
        "masks": "masks/{name}",
        "classes": classes,
        "background": background,
        "ignore": 255,
        "group": None if entry.by_piece else "images/(.+)__",
        "test_fraction": entry.test_fraction,
    }
    if not entry.pairs:
        return MaskFolderConfig(**fields)
    labels = {number: number for number in range(len(classes))}
    return PairFolderConfig(**fields, after="after/{name}", labels=labels)


def _write(entry: ResultSet, root: Path, out: Path) -> tuple[list[str], int | None]:
    """Write the pieces; returns the classes and which of them is background."""
    done = out / _DONE
    if done.is_file():
        found = json.loads(done.read_text(encoding="utf-8"))
        return found["classes"], found["background"]
    whole = entry.before(root, out) if entry.before is not None else {}
    fields = {**entry.layout, "root": root}
    if whole:
        fields["masks"] = "{stem}"  # looked up in `whole` below
    config = PairFolderConfig(**fields) if entry.pairs else MaskFolderConfig(**fields)
    meaning = config.meaning() if isinstance(config, PairFolderConfig) else config
    labels = LabelReader(meaning, root, CHANGE_CLASSES if entry.pairs else None)
    named = entry.groups(root) if entry.groups is not None else {}
    count = 0
    for image in find_images(config):
        dates = [read_image(image, config.reader)]
        if isinstance(config, PairFolderConfig):
            dates.append(read_image(belonging(image, config.after, config, "second date")[0], config.reader))
        stem = stem_of(image)
        masks = (Path(whole["masks"]) / f"{stem}.png",) if whole else belonging(image, config.masks, config, "mask")
        mask = torch.from_numpy(labels.merged(masks, (dates[0].shape[1], dates[0].shape[2]), image))
        group = re.sub(r"\W+", "-", named.get(stem, group_of(image, config))).strip("-")
        for name, pieces in _cut([*dates, mask[None]], entry):
            place = f"{group}__{count}_{name}.png"
            for folder, piece in zip(["images", "after"] if entry.pairs else ["images"], pieces[:-1], strict=True):
                save_png(piece.permute(1, 2, 0).numpy(), out / folder / place)
            save_png(pieces[-1][0].numpy().astype(np.uint8), out / "masks" / place)
        count += 1
    found = {"classes": list(labels.classes), "background": config.background, "images": count}
    write_json(done, found)
    return list(labels.classes), config.background


def _cut(layers: list[Tensor], entry: ResultSet) -> list[tuple[str, list[Tensor]]]:
    """Name and layers of every piece; the last layer is the mask. Pieces share no pixel and leave none out."""
    height, width = layers[0].shape[-2:]
    if entry.longest is not None and max(height, width) > entry.longest:
        size = [max(1, round(side * entry.longest / max(height, width))) for side in (height, width)]
        layers = [functional.resize(layer, size, antialias=True) for layer in layers[:-1]] + [
            functional.resize(layers[-1], size, interpolation=InterpolationMode.NEAREST_EXACT)
        ]
        height, width = size
    if entry.longest is not None and entry.longest <= entry.piece:
        return [("0_0", layers)]
    rows, columns = (
        np.linspace(0, side, math.ceil(side / entry.piece) + 1).round().astype(int) for side in (height, width)
    )
    return [
        (f"{i}_{j}", [layer[:, rows[i] : rows[i + 1], columns[j] : columns[j + 1]] for layer in layers])
        for i in range(len(rows) - 1)
        for j in range(len(columns) - 1)
    ]

"""Medical sets: AMOS 2022, BraTS 2021 (NIfTI volumes), COVID-QU-Ex and BUSI (pictures)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.fakes.pictures import blocks, label, picture, seed_of

_SHAPE = (48, 40, 4)


def _volume(file: Path, values: NDArray[np.generic], spacing: tuple[float, float, float]) -> None:
    import nibabel

    file.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])  # left, posterior, superior, as scanners write
    nibabel.save(nibabel.Nifti1Image(values, affine), file)


def _labels(file: Path, values: Sequence[int]) -> NDArray[np.uint8]:
    rows, columns, slices = _SHAPE
    return np.stack([blocks(values, columns, rows, seed_of(file) + i) for i in range(slices)], -1)


def amos2022(root: Path) -> Path:
    """CT in Hounsfield units, an MRI scan that is left out, and test scans without labels."""
    scans = {"Tr": ("amos_0001", "amos_0004", "amos_0507"), "Va": ("amos_0008",), "Ts": ("amos_0002",)}
    for part, names in scans.items():
        for name in names:
            image, mask = root / f"images{part}/{name}.nii.gz", root / f"labels{part}/{name}.nii.gz"
            values = np.random.default_rng(seed_of(image)).integers(-1000, 1000, _SHAPE).astype(np.int16)
            _volume(image, values, (0.8, 0.8, 5.0))
            if part != "Ts":
                _volume(mask, _labels(mask, range(16)), (0.8, 0.8, 5.0))
    return root


def brats2021(root: Path) -> Path:
    """Five patients, four sequences each, air of exactly 0 around the head; label values 0, 1, 2, 4."""
    for number in range(5):
        case = f"BraTS2021_{number:05}"
        for sequence in ("t1", "t1ce", "t2", "flair"):
            file = root / case / f"{case}_{sequence}.nii.gz"
            values = np.random.default_rng(seed_of(file)).integers(100, 900, _SHAPE).astype(np.int16)
            values[:6] = 0
            _volume(file, values, (1.0, 1.0, 1.0))
        mask = root / case / f"{case}_seg.nii.gz"
        _volume(mask, _labels(mask, (0, 1, 2, 4)), (1.0, 1.0, 1.0))
    return root


def covid_qu_ex(root: Path) -> Path:
    """Chest X-rays of three kinds; only those with COVID-19 have infections."""
    for part in ("Train", "Val", "Test"):
        for kind in ("COVID-19", "Non-COVID", "Normal"):
            folder = root / part / kind
            name = f"{kind.lower()}_{part.lower()}.png"
            picture(folder / "images" / name, 64, 64)
            label(folder / "lung masks" / name, (0, 255), 64, 64)
            label(folder / "infection masks" / name, (0, 255) if kind == "COVID-19" else (0,), 64, 64)
    return root


def busi(root: Path) -> Path:
    """Ultrasound images of three kinds, masks beside them; one has two lesions."""
    for kind in ("benign", "malignant", "normal"):
        for number in (1, 2):
            stem = f"{kind} ({number})"
            picture(root / kind / f"{stem}.png", 72, 64)
            label(root / kind / f"{stem}_mask.png", (0,) if kind == "normal" else (0, 255), 72, 64)
    label(root / "benign/benign (1)_mask_1.png", (0, 255), 72, 64)
    return root

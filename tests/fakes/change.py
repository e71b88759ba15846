"""Two dates and their changes: SVCD, WHU-CD, LEVIR-CD, S2Looking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.fakes.pictures import label, picture


def _pairs(root: Path, folders: tuple[str, str, str], names: Sequence[str], width: int, height: int) -> None:
    first, second, changes = folders
    for name in names:
        picture(root / first / name, width, height)
        picture(root / second / name, width, height)
        label(root / changes / name, (0, 255), width, height)


def svcd(root: Path) -> Path:
    """JPEG throughout, labels too: their values are not exactly 0 and 255."""
    for part in ("train", "val", "test"):
        _pairs(root / part, ("A", "B", "OUT"), ["00000.jpg", "00001.jpg"], 64, 64)
    return root


def whu_cd(root: Path) -> Path:
    """One large TIFF for each date and part, not a multiple of the tile, beside files that tools leave."""
    for part, width in (("train", 150), ("test", 100)):
        _pairs(root / part, ("A", "B", "OUT"), [f"2012_{part}.tif"], width, 70)
        for name in (".DS_Store", f"2012_{part}.tfw", f"2012_{part}.tif.aux.xml"):
            (root / part / "A" / name).write_text("beside", encoding="utf-8")
    return root


def levir_cd(root: Path) -> Path:
    """Pairs of 128 x 128 for 1,024 x 1,024."""
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        _pairs(root / part, ("A", "B", "label"), [f"{part}_{i + 1}.png" for i in range(count)], 128, 128)
    return root


def s2looking(root: Path) -> Path:
    """Pairs numbered through; the labels of new and of vanished buildings lie beside the merged one."""
    for part, names in (("train", ["1.png", "2.png"]), ("val", ["3.png"]), ("test", ["4.png"])):
        _pairs(root / part, ("Image1", "Image2", "label"), names, 96, 96)
        for name in names:
            label(root / part / "label1" / name, (0, 255), 96, 96)
            label(root / part / "label2" / name, (0, 255), 96, 96)
    return root

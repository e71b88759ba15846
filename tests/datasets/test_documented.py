"""Every data set fragment in docs/datasets.md is a valid recipe part, and reads the real files where they are here."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pydantic import TypeAdapter
from typer.testing import CliRunner

from vitp.cli import app
from vitp.commands.paste import paste
from vitp.datasets.dense import DenseDataConfig, open_dataset
from vitp.datasets.patches import paste_patches
from vitp.errors import ConfigError, DataError, OutputError

HERE = Path(__file__).parents[2]
REAL = HERE / "../shared/data"
FRAGMENTS = [
    yaml.safe_load(text)["data"]
    for text in re.findall(r"```yaml\n(.*?)```", (HERE / "docs/datasets.md").read_text(), re.S)
]
CONFIG: TypeAdapter[Any] = TypeAdapter(DenseDataConfig)


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda fragment: Path(fragment["root"]).name)
def test_a_documented_fragment_is_valid_and_reads_real_data(fragment: dict[str, Any], tmp_path: Path) -> None:
    config = CONFIG.validate_python(fragment)
    root = REAL / config.root.relative_to("data")
    if not root.is_dir():
        pytest.skip(f"{root} is not here")
    if root.name == "covid_cxr_seg":
        (tmp_path / "images").symlink_to(root.resolve() / "images")
        classes = {"COVID-19 Left Lung": 1, "COVID-19 Right Lung": 1, "COVID-19 Ground Glass Opacities": 2}
        assert paste_patches(root / "structure.csv", root / "images", tmp_path / "labels", classes) == 11
        root = tmp_path
    data = open_dataset(config.model_copy(update={"root": root}))
    report = data.check(threads=1)
    *images, mask = data.read(data.train[0])
    assert all(image.dtype == torch.uint8 and image.shape[1:] == mask.shape for image in images)
    assert sum(count > 0 for count in report.train.values()) > 1


def _table(root: Path, **changes: str) -> Path:
    """An image of 10 x 8 pixels with two structures, of which the second lies partly in the first."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(exist_ok=True)
    Image.new("RGB", (10, 8)).save(root / "images/x.jpg")
    Image.new("RGBA", (4, 3), (255, 255, 255, 255)).save(root / "masks/lung.png")
    Image.fromarray(np.array([[0, 9], [9, 9]], dtype=np.uint8)).save(root / "masks/spot.png")
    lung = {
        "Class": "lung",
        "Filename": "x.jpg",
        "Mask": "masks/lung.png",
        "Left": "2",
        "Top": "1",
        "Width": "4",
        "Height": "3",
    }
    spot = {
        "Class": "spot",
        "Filename": "x.jpg",
        "Mask": "masks/spot.png",
        "Left": "5",
        "Top": "3",
        "Width": "2",
        "Height": "2",
    }
    with (root / "t.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(lung))
        writer.writeheader()
        writer.writerows([spot, {**lung, **changes}])
    return root / "t.csv"


def test_patches_are_pasted_where_the_table_says(tmp_path: Path) -> None:
    table = _table(tmp_path)
    assert paste_patches(table, tmp_path / "images", tmp_path / "out", {"lung": 1, "spot": 2}) == 1
    wanted = np.zeros((8, 10), dtype=np.uint8)
    wanted[1:4, 2:6] = 1
    wanted[3, 6] = wanted[4, 5] = wanted[4, 6] = 2  # the empty corner of the spot shows the lung
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/x.png")), wanted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"Left": "7"}, r"t\.csv:3: the box of .*lung\.png reaches outside the image of 10 x 8"),
        ({"Width": "5"}, r"t\.csv:3: the patch .* has 4 x 3 pixels and its box 5 x 3"),
        ({"Mask": "masks/none.png"}, r"t\.csv:3: the patch .*none\.png cannot be read"),
        ({"Top": "one"}, r"t\.csv:3: Left, Top, Width, Height must be whole numbers"),
        ({"Class": "heart"}, r"names no structure of class 'lung'; its classes: heart, spot"),
        ({"Filename": "y.jpg"}, r"y\.jpg"),
    ],
)
def test_mistakes_in_a_table_name_the_line(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    table = _table(tmp_path, **changes)
    with pytest.raises(DataError, match=said):
        paste_patches(table, tmp_path / "images", tmp_path / "out", {"lung": 1, "spot": 2})


def test_the_command_pastes_patches_and_overwrites_nothing_unasked(tmp_path: Path) -> None:
    table, out = _table(tmp_path), tmp_path / "out"
    given = [
        "paste",
        str(table),
        str(tmp_path / "images"),
        str(out),
        "--class",
        "lung=1",
        "--class",
        "spot=2",
        "--json",
    ]
    first = CliRunner().invoke(app, given)
    assert first.exit_code == 0, first.output
    assert json.loads(first.stdout.splitlines()[-1]) == {"out": str(out), "masks": 1, "classes": {"lung": 1, "spot": 2}}
    assert np.asarray(Image.open(out / "x.png")).max() == 2
    with pytest.raises(OutputError, match="--overwrite"):
        paste(table, tmp_path / "images", out, ["lung=1"])
    paste(table, tmp_path / "images", out, ["lung=1"], overwrite=True)
    assert np.asarray(Image.open(out / "x.png")).max() == 1
    with pytest.raises(OutputError, match="folder of the images"):
        paste(table, out, out, ["lung=1"], overwrite=True)
    for text in ("lung", "lung=one", "=1", "lung=-1"):
        with pytest.raises(ConfigError, match="NAME=ID"):
            paste(table, tmp_path / "images", tmp_path / "new", [text])
    with pytest.raises(ConfigError, match="no class"):
        paste(table, tmp_path / "images", tmp_path / "new", [])

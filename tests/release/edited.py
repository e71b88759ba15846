"""A run with another recipe."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml


def edited(run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of a run with another recipe.yaml."""
    shutil.copytree(run, folder)
    document = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    change(document)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return folder

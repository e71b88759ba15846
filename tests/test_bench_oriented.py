"""`bench.oriented_scenes` keeps finished parts; those of other settings are never taken for what is asked for."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from bench.oriented_scenes import remember


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    args = Namespace(out=tmp_path, seeds=3, arms=["random"], json=False, steps=600, pretrain_steps=1000)
    remember(args)
    remember(Namespace(**{**vars(args), "seeds": 5, "arms": ["random", "vitp"], "json": True}))
    with pytest.raises(SystemExit, match="made with --pretrain-steps 1000, --steps 600; say the same"):
        remember(Namespace(**{**vars(args), "steps": 10, "pretrain_steps": 20}))
    remember(args)

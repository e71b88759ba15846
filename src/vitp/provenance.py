"""What a run was made with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

import vitp


def provenance() -> dict[str, str]:
    """Versions and the git commit of the working folder, saved with every run."""
    import timm
    import transformers

    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(vitp.__file__).parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    return {
        "vitp": vitp.__version__,
        "git_commit": commit or "unknown",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "transformers": transformers.__version__,
    }

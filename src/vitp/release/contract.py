"""What every export format is given and must give back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitp.errors import CheckpointError

if TYPE_CHECKING:
    from vitp.backbone.vit import BackboneConfig
    from vitp.release.facts import RunFacts
    from vitp.vlm.model import VisionLanguageModel

TOLERANCE = 1e-4  # fp32, between two libraries' order of the same sums
PENDING = "?" * 12  # holds the place of the difference in a header until it is measured


@dataclass(frozen=True)
class Parity:
    """How far an output is from the run's own: the greatest absolute difference, and the greatest value of our own."""

    difference: float
    scale: float

    @property
    def allowed(self) -> float:
        """`TOLERANCE`, relative where outputs are large: towers without a final norm have features in the hundreds."""
        return TOLERANCE * max(1.0, self.scale)

    def worse(self, other: Parity) -> Parity:
        """The one of two that is nearer to or further beyond what it may be."""
        return max(self, other, key=lambda parity: parity.difference / parity.allowed)

    def require(self, path: Path, library: str) -> None:
        """Refuse what another library computes differently.

        Raises:
            CheckpointError: the difference is above what is allowed.
        """
        if not self.difference <= self.allowed:
            raise CheckpointError(
                f"{path}: re-loaded through {library} the output differs by {self.difference:.3g} (allowed "
                f"{self.allowed:.3g}); not written"
            )


@dataclass(frozen=True)
class OnHub:
    """A place on a Hugging Face hub: owner/name, and the file in it that holds the weights."""

    repo: str
    file: str

    def fetched(self) -> str:
        """The Python expression that gives the weights' path on this machine."""
        return f"huggingface_hub.hf_hub_download({self.repo!r}, {self.file!r})"


def opened_at(place: Path | OnHub) -> str:
    """The argument of a ``from_pretrained``: a path or a repository, quoted."""
    return repr(place.repo if isinstance(place, OnHub) else str(place))


def file_at(place: Path | OnHub) -> str:
    """The argument of a function that takes a file: its path, or an expression that fetches it."""
    return place.fetched() if isinstance(place, OnHub) else repr(str(place))


@dataclass(frozen=True)
class Release:
    """A run, loaded and made ready to be written.

    `tower` is in fp32 and eval mode, at the sizes asked for, and already rounded to `dtype`; `backbone` describes it.
    """

    model: VisionLanguageModel
    tokenizer: Any
    tower: nn.Module
    backbone: BackboneConfig
    facts: RunFacts
    dtype: torch.dtype

    def metadata(self) -> dict[str, str]:
        """Texts for the header of a weights file."""
        return {**self.facts.metadata(), "max_abs_difference": PENDING}


@dataclass(frozen=True)
class Format:
    """One value of ``--to``.

    `write` fills a file or folder of a temporary name and compares the run's own output with that of what was written,
    opened again by `library`. `command` gives the Python expression that opens
    it where it is. `suffix` is "" for a folder.
    """

    name: str
    what: str
    library: str
    default: str
    suffix: str
    write: Callable[[Release, Path], Parity]
    command: Callable[[Release, Path | OnHub], str]
    whole: bool = False  # the whole model, not the ViT alone
    dtypes: tuple[str, ...] = ("fp32", "bf16")


def fixed_input(size: int) -> Tensor:
    """A normalised test picture [2, 3, size, size], the same on every machine."""
    at = torch.linspace(-1, 1, size)
    waves = torch.stack([torch.sin(7 * at[:, None] + 3 * at), torch.cos(5 * at[:, None] * at), at[:, None] - at])
    return torch.stack([waves, -waves.flip(-1) * 0.5])


@torch.no_grad()
def tower_features(release: Release) -> tuple[Tensor, Tensor]:
    """The test picture [2, 3, S, S] and what the tower makes of it, [2, N, C] with its prefix tokens."""
    x = fixed_input(release.backbone.image_size)
    return x, release.tower.forward_features(x)  # type: ignore[operator]


def compare(ours: Tensor, theirs: Tensor) -> Parity:
    """Max |ours - theirs| beside max |ours|; infinitely far where a shape differs or a value is not finite."""
    if ours.shape != theirs.shape:
        return Parity(float("inf"), 0.0)
    difference = float((ours.double() - theirs.double()).abs().max())
    return Parity(difference if difference == difference else float("inf"), float(ours.abs().max()))

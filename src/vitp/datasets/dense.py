"""The data sets of dense tasks under one roof: `data: {kind: masks | pairs | volumes, ...}` in a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vitp.datasets.masks import MaskFolder, MaskFolderConfig
from vitp.datasets.pairs import PairFolder, PairFolderConfig
from vitp.datasets.volumes import VolumeFolder, VolumeFolderConfig


def _with_kind(data: Any) -> Any:
    """Recipes name no kind for masks."""
    return {"kind": "masks", **data} if isinstance(data, dict) else data


DenseDataConfig = Annotated[
    MaskFolderConfig | PairFolderConfig | VolumeFolderConfig, Field(discriminator="kind"), BeforeValidator(_with_kind)
]
DenseData = MaskFolder | PairFolder | VolumeFolder


def open_dataset(config: DenseDataConfig) -> DenseData:
    """Find and divide the images of a data set; see its class for what it raises."""
    if isinstance(config, PairFolderConfig):
        return PairFolder(config)
    if isinstance(config, VolumeFolderConfig):
        return VolumeFolder(config)
    return MaskFolder(config)

"""A ViT for another patch size and another image size: its kernel and its positions, resampled once, before use.

Two ways. ``pinv`` is timm's: the kernel is multiplied by the pseudo-inverse of the resizing, so that a patch shown larger gives
the same token (FlexiViT, arXiv 2212.08013, section 3.4), and positions are resized bicubically with antialias. ``bicubic``
is the released ViTP code's: kernel and positions by plain bicubic interpolation. A 16-pixel kernel made that way from 14
pixels sums to about (16 / 14)^2 = 1.31 times as much, so its tokens are that much larger; the released downstream models
were trained with it.

Shape legend: O output and I input channels of the patch embedding, p patch size, N tokens, C width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor
from torch.nn import functional

from vitp.errors import ConfigError

if TYPE_CHECKING:
    from vitp.backbone.vit import BackboneConfig

Resample = Literal["pinv", "bicubic"]
RESAMPLES: tuple[Resample, ...] = ("pinv", "bicubic")
KERNEL, POSITIONS = "patch_embed.proj.weight", "pos_embed"


def resample_kernel(kernel_OIpp: Tensor, patch_size: int, how: Resample) -> Tensor:
    """The patch embedding's kernel [O, I, p, p] for patches of `patch_size` pixels, in its own dtype."""
    if kernel_OIpp.shape[-1] == patch_size:
        return kernel_OIpp
    side = [patch_size, patch_size]
    if how == "pinv":
        resized: Tensor = resample_patch_embed(kernel_OIpp, side)
        return resized
    # In float32 whatever the file holds: older CPU kernels have no bicubic in bf16, and it rounds twice.
    return functional.interpolate(kernel_OIpp.float(), side, mode="bicubic", align_corners=False).to(kernel_OIpp.dtype)


def resample_positions(positions_1NC: Tensor, old_grid: int, grid: int, how: Resample) -> Tensor:
    """Position embeddings [1, prefix + old_grid^2, C] for `grid` x `grid` patches; those of prefix tokens stay."""
    if old_grid == grid:
        return positions_1NC
    prefix = positions_1NC.shape[1] - old_grid * old_grid
    resized: Tensor = resample_abs_pos_embed(
        positions_1NC, [grid, grid], [old_grid, old_grid], num_prefix_tokens=prefix, antialias=how == "pinv"
    )
    return resized


def new_sizes(
    image_size: int, patch_size: int, new_image_size: int | None, new_patch_size: int | None
) -> tuple[int, int]:
    """(image size, patch size) after resampling; a patch size given alone keeps the grid, so that no position moves.

    Raises:
        ConfigError: a size is not positive, or the patch does not divide the image.
    """
    patch = patch_size if new_patch_size is None else new_patch_size
    if patch < 1 or (new_image_size is not None and new_image_size < 1):
        raise ConfigError(f"patch_size {patch}, image_size {new_image_size}: sizes are pixels, at least 1")
    image = image_size // patch_size * patch if new_image_size is None else new_image_size
    if new_image_size is None and new_patch_size is None:
        image = image_size
    if image % patch:
        near = max(1, round(image / patch)) * patch
        raise ConfigError(f"image_size {image} is not a multiple of patch_size {patch}; the nearest is {near}")
    return image, patch


def resample_tensors(
    tensors: Mapping[str, Tensor], old: tuple[int, int], new: tuple[int, int], how: Resample
) -> dict[str, Tensor]:
    """A ViT's tensors under timm's names, for other sizes; what does not change shares memory.

    Args:
        tensors: of a ViT without rotary or relative positions.
        old: (image size, patch size) the tensors were made for.
        new: (image size, patch size) wanted, as `new_sizes` gives them.
        how: "pinv" or "bicubic".

    Raises:
        ConfigError: `how` is neither.
    """
    if how not in RESAMPLES:
        raise ConfigError(f"resample '{how}' is unknown; choose {' or '.join(RESAMPLES)}")
    out = dict(tensors)
    if KERNEL in out:
        out[KERNEL] = resample_kernel(out[KERNEL], new[1], how)
    if POSITIONS in out:
        out[POSITIONS] = resample_positions(out[POSITIONS], old[0] // old[1], new[0] // new[1], how)
    return out


def resized(
    config: BackboneConfig,
    tensors: Mapping[str, Tensor],
    image_size: int | None,
    patch_size: int | None,
    how: Resample,
) -> tuple[BackboneConfig, dict[str, Tensor]]:
    """A ViT's config and tensors (timm's names) for other sizes; None keeps a size.

    Raises:
        ConfigError: sizes that do not fit together, or an unknown way of resampling.
    """
    old = (config.image_size, config.patch_size)
    new = new_sizes(*old, image_size, patch_size)
    changed = config.model_copy(update={"image_size": new[0], "patch_size": new[1]})
    return changed, resample_tensors(tensors, old, new, how)

"""Which images are for training, validation and testing: lists, patterns or a seeded share, the same for every data set."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from vitp.config import Config
from vitp.datasets.layout import Item, below_root, stem_of
from vitp.errors import DataError
from vitp.train.draws import Purpose, generator

Split = Literal["train", "val", "test"]


class SplitConfig(Config):
    """Who belongs to which part. A list that is named must be there: its absence never means "all images".

    A list is a text file with one image a line: its path under root, its name, its stem, or a group. A path that does
    not exist as given is looked for under root.
    """

    train_images: str | None = None  # glob under root of the training images; without list or glob: all the others
    val_images: str | None = None  # glob under root of the validation images; without: none
    test_images: str | None = None  # glob under root of the test images
    train_list: Path | None = None
    val_list: Path | None = None
    test_list: Path | None = None
    test_fraction: float = Field(default=0.2, gt=0, lt=1)  # without test images or list: a seeded share (customary)
    # ours: a seeded share of the training images put aside for validation, whole groups; None: none
    val_fraction: float | None = Field(default=None, gt=0, lt=1)
    train: int | None = Field(default=None, ge=1)  # few-shot: so many training images; a smaller set lies in a larger
    # data efficiency (paper, Table 15): a share of the training images, whole groups, a smaller one inside a larger one
    fraction: float = Field(default=1.0, gt=0, le=1)
    fraction_seed: int | None = Field(default=None, ge=0)  # draws them; None: split_seed
    split_seed: int = Field(default=0, ge=0)

    @field_validator("train_images", "val_images", "test_images")
    @classmethod
    def _parts_below_root(cls, pattern: str | None) -> str | None:
        return below_root(pattern)

    @model_validator(mode="after")
    def _one_way(self) -> SplitConfig:
        if self.train is not None and self.fraction < 1:
            raise ValueError("train and fraction both say how much is trained on; keep one")
        if self.val_fraction is not None and (self.val_images is not None or self.val_list is not None):
            named = "val_images" if self.val_list is None else "val_list"
            raise ValueError(f"val_fraction and {named} both say what the validation images are; keep one")
        for part in ("train", "val", "test"):
            if getattr(self, f"{part}_images") is not None and getattr(self, f"{part}_list") is not None:
                raise ValueError(f"{part}_images and {part}_list both say what the {part} images are; keep one")
        if self.test_list is None and self.test_images is None:
            for key in ("train_list", "train_images"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} is given without test_list or test_images; name both, or the test part alone"
                    )
        return self


@dataclass(frozen=True)
class Parts:
    """Indices of the images of each part, sorted."""

    train: list[int]
    val: list[int]
    test: list[int]

    def of(self, split: Split) -> list[int]:
        """The images of a part."""
        return {"train": self.train, "val": self.val, "test": self.test}[split]


class Divided:
    """Images and their parts: what every data set of dense tasks is."""

    items: Sequence[Item]
    parts: Parts  # indices of the items

    def __len__(self) -> int:
        return len(self.items)

    @property
    def train(self) -> list[int]:
        """The training images."""
        return self.parts.train

    @property
    def val(self) -> list[int]:
        """The validation images; none where the recipe names none."""
        return self.parts.val

    @property
    def test(self) -> list[int]:
        """The test images."""
        return self.parts.test

    def indices(self, split: Split) -> list[int]:
        """The images of a part."""
        return self.parts.of(split)


def split_items(
    items: Sequence[Item],
    config: SplitConfig,
    root: Path,
    *,
    known: Mapping[Split, set[int]] | None = None,
    useless: Collection[int] = (),
) -> Parts:
    """Divide images; no image and no group stands in training and in another part. Validation may be the test part.

    Args:
        items: the images.
        config: how.
        root: of the data set.
        known: parts that need neither list nor pattern, because the data set has them written elsewhere.
        useless: images that nothing can be learned from; they are left out of training alone.

    Raises:
        DataError: a list is missing or names an unknown image, a pattern matches nothing, a part is empty, or an image or
            group would be on both sides.
    """
    order = generator(config.split_seed, Purpose.MIXTURE, 0).permutation(len(items)).tolist()
    known = known or {}
    held = known.get("test") or _named(items, config, root, "test")
    if held is None:
        held = _draw_groups(order, config.test_fraction, items)
    val = known.get("val") or (_named(items, config, root, "val") if not known else None) or set()
    wanted = known.get("train") or _named(items, config, root, "train")
    if wanted is None:
        wanted = set(order) - held - val
    for other, said in ((held, "test"), (val, "validation")):
        if shared := {items[i].group for i in wanted} & {items[i].group for i in other}:
            raise DataError(f"'{min(shared)}' is in both the training and the {said} images; keep it in one", str(root))
    if config.val_fraction is not None:  # only now: a group that is tested, too, must not pass for a validation group
        val = _put_aside([i for i in order if i in wanted], config.val_fraction, items, val, root)
        wanted = wanted - val
    dropped = set(useless)
    train = [i for i in order if i in wanted and i not in dropped]
    if not train or not held:
        raise DataError(f"{len(items)} images leave {len(train)} for training, {len(held)} for testing", str(root))
    if config.train is not None:
        if config.train > len(train):
            raise DataError(f"train: {config.train} images wanted, {len(train)} there; lower it", str(root))
        train = train[: config.train]
    if config.fraction < 1:
        train = _share(train, items, config)
    return Parts(sorted(train), sorted(val), sorted(held))


def _share(train: Sequence[int], items: Sequence[Item], config: SplitConfig) -> list[int]:
    """The first groups in drawn order that come nearest to `fraction` of the training images; one group at least.

    A smaller share takes a shorter run of the same order, so it lies inside a larger one.
    """
    seed = config.split_seed if config.fraction_seed is None else config.fraction_seed
    names = sorted({items[i].group for i in train})
    members: dict[str, list[int]] = {}
    for i in train:
        members.setdefault(items[i].group, []).append(i)
    wanted = config.fraction * len(train)
    found: list[int] = []
    for at in generator(seed, Purpose.MIXTURE, 5).permutation(len(names)).tolist():
        group = members[names[at]]
        if found and abs(len(found) + len(group) - wanted) >= abs(len(found) - wanted):
            break
        found += group
    return found


def _named(items: Sequence[Item], config: SplitConfig, root: Path, part: Split) -> set[int] | None:
    """Images of a part by its list or pattern; None where the recipe names neither."""
    listed: Path | None = getattr(config, f"{part}_list")
    if listed is not None:
        return _listed(listed if listed.exists() else root / listed, items, root)
    pattern: str | None = getattr(config, f"{part}_images")
    if pattern is None:
        return None
    files = set(root.glob(pattern))
    found = {i for i, item in enumerate(items) if item.image in files}
    if not found:
        raise DataError(
            f"{part}_images '{pattern}' matches none of the {len(items)} images; correct one of the patterns", str(root)
        )
    return found


def _put_aside(order: Sequence[int], fraction: float, items: Sequence[Item], known: set[int], root: Path) -> set[int]:
    """Validation images drawn from the training images, which are in drawn `order`."""
    if known:
        raise DataError(
            f"has {len(known)} validation images already, so val_fraction has none to draw; leave it out", str(root)
        )
    found = _draw_groups(order, fraction, items)
    if not found:
        raise DataError(
            "val_fraction: the training images are of one group, which stays whole; name validation images", str(root)
        )
    return found


def _draw_groups(order: Sequence[int], fraction: float, items: Sequence[Item]) -> set[int]:
    """Images of the first groups in drawn `order` that together make up `fraction` of it; one group at least stays."""
    members: dict[str, list[int]] = {}
    for i in order:
        members.setdefault(items[i].group, []).append(i)
    held: set[int] = set()
    for group in list(members)[:-1]:
        if len(held) >= max(1, round(fraction * len(order))):
            break
        held.update(members[group])
    return held


def _listed(file: Path, items: Iterable[Item], root: Path) -> set[int]:
    """Indices of the images a list names."""
    images: dict[str, set[int]] = {}
    groups: dict[str, set[int]] = {}
    for i, item in enumerate(items):
        relative = item.image.relative_to(root)
        for name in {relative.as_posix(), relative.name, relative.stem, stem_of(relative)}:
            images.setdefault(name, set()).add(i)
        groups.setdefault(item.group, set()).add(i)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(
            "the list does not exist; all images are never meant by that: correct its path", str(file)
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the list cannot be read ({error})", str(file)) from error
    found: set[int] = set()
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        hits = images.get(name, set())
        if len(hits) == 1 or name in groups:
            found |= hits if len(hits) == 1 else groups[name]
            continue
        what = "names no image of the data set" if not hits else f"could be any of {len(hits)} images"
        raise DataError(f"'{name}' {what}; write its path under {root}", f"{file}:{number}")
    if not found:
        raise DataError("the list names no image", str(file))
    return found

"""What `vitp synthesize` is told: where the labels are, what their values mean, and what to ask."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from vitp.config import Config
from vitp.synthesis.paraphrase import ParaphraseConfig

Format = Literal["coco", "dota", "voc", "folders", "masks", "change", "captions"]
Task = Literal[
    "caption", "count", "presence", "compare", "position", "relation", "grounding", "oriented", "refer", "region",
    "part", "layout", "area", "extent", "class", "choice", "verify", "change", "change_area", "change_presence",
    "change_part", "change_layout",
]  # fmt: skip

_OBJECTS: tuple[Task, ...] = (
    "caption", "count", "presence", "compare", "position", "relation", "grounding", "oriented", "refer", "region",
    "part",
)  # fmt: skip
TASKS: dict[Format, tuple[Task, ...]] = {
    "coco": _OBJECTS,
    "dota": _OBJECTS,
    "voc": _OBJECTS,
    "folders": ("caption", "class", "choice", "verify"),
    "masks": ("caption", "presence", "compare", "area", "position", "layout", "part", "region", "extent"),
    "change": ("change", "change_area", "change_presence", "change_part", "change_layout"),
    "captions": ("caption",),
}
_PLACES = {"stem", "name", "folder", "parent", "above"}


class SynthesizeConfig(Config):
    """One labelled data set, and the instruction file to write from it.

    `masks` is a path under `root` made from the image's, as in fine-tuning: {name}, {stem} (no suffix), {folder} under
    root, the last part of that folder {parent} and the folder above it {above}; it may hold * for several files.
    """

    root: Path  # image paths in the output are relative to it
    out: Path  # the JSON Lines file
    format: Literal["auto", Format] = "auto"
    labels: Path | None = None  # label file (coco, captions) or folder (dota, voc), below root; None: found by itself
    images: str | None = None  # folder of the images below root; for masks a glob, img_dir/*.png; None: found by itself
    masks: str | None = None  # masks only, see above
    exclude: str | None = None  # glob under root of files that are no images (folders, masks)
    split: str | None = None  # VOC's list, the key of caption files, part of COCO's file name, or a folder below root
    limit: int | None = Field(default=None, ge=1)  # the first so many images, by name
    classes: dict[int, str] | None = None  # masks: pixel value -> name; None: classes.json in root
    ignore: tuple[int, ...] = ()  # masks: pixel values that are no class
    unnamed: tuple[str, ...] = (
        "background",
        "clutter",
        "other",
    )  # ours: mask classes that are no subject of a question
    rename: dict[str, str] = Field(default_factory=dict)  # class as the labels name it -> the word to use
    plurals: dict[str, str] = Field(default_factory=dict)  # the word to use -> its plural, where English is irregular
    subject: str | None = None  # change: what the label marks, e.g. building; None: change of any kind
    view: str = Field(default="image", min_length=1)  # what captions call the picture, e.g. "ultrasound image"
    tasks: tuple[Task, ...] | None = None  # None: all that the format allows
    without: tuple[Task, ...] = ()
    turns: int = Field(default=6, ge=1)  # ours: as many questions an image as the demo's scenes have
    paraphrase: ParaphraseConfig | None = None  # a local language model for further phrasings; None: our own alone
    seed: int = Field(default=0, ge=0)
    overwrite: bool = False

    @field_validator("images", "masks", "exclude")
    @classmethod
    def _below_root(cls, pattern: str | None) -> str | None:
        if pattern is not None and (not pattern or pattern.startswith("/") or ".." in pattern.split("/")):
            raise ValueError(f"must be a pattern relative to root, got '{pattern}'")
        return pattern

    @field_validator("masks")
    @classmethod
    def _template(cls, masks: str | None) -> str | None:
        if masks is not None:
            found = set(re.findall(r"{(\w*)}", masks))
            if not found & {"stem", "name"} or found - _PLACES:
                known = ", ".join(f"{{{place}}}" for place in sorted(_PLACES))
                raise ValueError(f"must hold {{stem}} or {{name}}, and no place but {known}; got '{masks}'")
        return masks

    @field_validator("rename", "plurals")
    @classmethod
    def _words(cls, words: dict[str, str]) -> dict[str, str]:
        for key, word in words.items():
            if not word.strip() or re.search(r"[<>\n\r\0]", word):
                raise ValueError(f"'{key}' needs plain words, got {word!r}")
        return words

    @field_validator("view", "subject")
    @classmethod
    def _word(cls, text: str | None) -> str | None:
        if text is not None and (not text.strip() or re.search(r"[<>\n\r\0]", text)):
            raise ValueError(f"needs plain words, got {text!r}")
        return text

    @model_validator(mode="after")
    def _fits(self) -> SynthesizeConfig:
        if self.format != "auto":
            strange = [t for t in [*(self.tasks or []), *self.without] if t not in TASKS[self.format]]
            if strange:
                raise ValueError(f"no task '{strange[0]}' for {self.format}; it has {', '.join(TASKS[self.format])}")
        if self.masks is not None and self.images is None:
            raise ValueError("masks is given without images; name both, as in images: img_dir/*.png")
        return self

    def chosen(self, fmt: Format) -> tuple[Task, ...]:
        """The tasks to ask for a format, in the order of `TASKS`."""
        wanted = TASKS[fmt] if self.tasks is None else self.tasks
        return tuple(task for task in TASKS[fmt] if task in wanted and task not in self.without)

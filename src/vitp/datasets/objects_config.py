"""What a recipe says about a data set of labelled objects."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitp.config import Config
from vitp.datasets.layout import LayoutConfig
from vitp.datasets.splits import SplitConfig
from vitp.images.read import ImageConfig


class ObjectRules(Config):
    """What is common to all label formats."""

    # In the order of their ids; upper and lower case may differ from the labels'. None: COCO's categories by their id,
    # of other formats all names that occur, sorted.
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    rename: dict[str, str] = Field(default_factory=dict)  # name in the labels -> class; several may become one
    leave_out: tuple[str, ...] = ()  # names in the labels whose objects are not wanted
    skip_empty: bool = True  # training images without objects are left out (mmdetection, so the released configs)
    tolerate: float = Field(default=0.05, ge=0, le=1)  # share of unusable objects above which nothing is trained (ours)
    stated_size: Literal["check", "ignore"] = "check"  # an image of another size than its labels say is an error (ours)
    reader: ImageConfig = ImageConfig()  # bands, scaling, windows and slices of images deeper than 8 bits

    @model_validator(mode="after")
    def _distinct(self) -> ObjectRules:
        lower = [name.lower() for name in self.classes or ()]
        if len(set(lower)) < len(lower):
            raise ValueError("classes holds a name twice (upper and lower case are the same)")
        if both := set(self.rename) & set(self.leave_out):
            raise ValueError(f"'{min(both)}' is both renamed and left out; keep one")
        if self.classes is not None and (strange := set(self.rename.values()) - set(self.classes)):
            raise ValueError(f"rename gives '{min(strange)}', which is none of the classes")
        return self


class CocoConfig(SplitConfig, ObjectRules, LayoutConfig):
    """Objects in COCO's JSON.

    Either `labels` holds all images, which are divided as `SplitConfig` says, or `train_labels` and `test_labels` (and
    `val_labels`, which may be the test file) each hold a part. A ``file_name`` is the end of an image's path under root,
    whole folder names at a time; the glob ``train_images`` narrows where the images of ``train_labels`` are looked for.
    """

    kind: Literal["coco"] = "coco"
    labels: str | None = None  # path under root
    train_labels: str | None = None
    val_labels: str | None = None
    test_labels: str | None = None
    outlines: bool = False  # read the outlines too, polygons and run lengths (needed to learn masks)
    rotated: bool = False  # quads: an outline of four points itself, else the rectangle of least area around it

    @model_validator(mode="after")
    def _files(self) -> CocoConfig:
        parts = (self.train_labels, self.val_labels, self.test_labels)
        if (self.labels is None) == (parts == (None, None, None)):
            raise ValueError("labels is missing: give labels (all images), or train_labels and test_labels")
        if self.labels is None and None in (self.train_labels, self.test_labels):
            raise ValueError("train_labels and test_labels belong together; give both")
        if self.labels is None and (self.train_list or self.val_list or self.test_list):
            raise ValueError("train_labels and test_labels already say what belongs to which part; leave out the lists")
        for path in (self.labels, *parts):
            if path is not None and (PurePosixPath(path).is_absolute() or not path):
                raise ValueError(f"label files are paths under root, got '{path}'")
        return self


class FileLabels(SplitConfig, ObjectRules, LayoutConfig):
    """Formats with one label file an image."""

    labels: str  # template of its path (see LayoutConfig): Annotations/{stem}.xml, {above}/labelTxt/{stem}.txt
    # An image without its label file: an error, an image without objects, or no part of the data set. (ours)
    unlabelled: Literal["error", "empty", "leave_out"] = "error"

    @model_validator(mode="after")
    def _template(self) -> FileLabels:
        self.check_template("labels", self.labels)
        return self


class XmlConfig(FileLabels):
    """Objects in XML as Pascal VOC writes it, and as SSDD extends it."""

    # What xmin and xmax of an upright box are: the box's borders as they stand (what most tools write), or its first and
    # last pixel, counted from 1 (Pascal VOC's own definition) or from 0.
    counting: Literal["edges", "from_1", "from_0"] = "edges"
    quads: Literal["rotated_bndbox", "robndbox"] | None = (
        None  # SSDD's x1 ... y4, DIOR-R's x_left_top ...; None: upright
    )
    outlines: bool = False  # SSDD's segm points
    difficult: Literal["ignore", "keep"] = "ignore"  # Pascal VOC: neither scored nor learned as objects
    truncated: Literal["ignore", "keep"] = "keep"  # Pascal VOC: like any other


class VocConfig(XmlConfig):
    """Pascal VOC's XML, and what else has its form."""

    kind: Literal["voc"] = "voc"


class DiorRConfig(XmlConfig):
    """DIOR-R's XML: the four corners in ``robndbox``."""

    kind: Literal["dior_r"] = "dior_r"
    quads: Literal["rotated_bndbox", "robndbox"] | None = "robndbox"


class DotaConfig(FileLabels):
    """DOTA's text: ``x1 y1 x2 y2 x3 y3 x4 y4 class difficulty`` a line, after header lines; RSAR writes the same."""

    kind: Literal["dota"] = "dota"
    # Difficulties whose objects are not scored, nor learned as objects: while training they are background, unless the
    # detector's `ignore_overlap` is set. Released: none. DOTA's own score leaves out 1; 2 marks what was cut when images were
    # split.
    ignore_difficulty: tuple[int, ...] = ()


DetectionDataConfig = Annotated[CocoConfig | VocConfig | DiorRConfig | DotaConfig, Field(discriminator="kind")]

"""What one finding of `vitp check` says, and what was expected for each kind of finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitp.errors import DataError
from vitp.images.decode import MAX_PIXELS, ImageError
from vitp.instruction.records import RecordError

Severity = Literal["error", "warning"]

MIN_SIDE = 8  # pixels; ours: smaller than a patch of any ViT
MAX_RATIO = 50  # longer side to shorter; ours: nothing is left of it after resizing to a tile
MAX_ANSWER_CHARS = 16_384  # ours: about 4,096 tokens, the paper's whole length of a sample

_WHOLE_FILE = "a complete image file in a format that can be read"
_ONE_SLICE = "a volume of which one slice can be taken"
_RASTER = "a raster with the bands and the window that the source's images.raster names"
_DICOM = "an uncompressed DICOM image, or one whose compression can be read"

# What is right where a code says what is wrong.
EXPECTED: Mapping[str, str] = {
    "record-layout": "turns under 'conversations' or 'messages', and images under 'image' or 'images' or in the turns",
    "file-damaged": "a file that can be read to its end",
    "shard-member": "a sample whose files are all in the shard, under one key",
    "record-type": "a JSON object whose turns are texts and whose images are paths",
    "record-role": "turns from human or user, gpt or assistant, and system",
    "record-order": "an optional system turn, then user and assistant in turn, an assistant last",
    "empty-text": "questions and answers that say something",
    "image-marks": "one <image> mark in a user turn for each image",
    "reserved-token": "texts without the tokens of the chat template",
    "bad-text": "texts that UTF-8 can hold",
    "video": "images",
    "line-syntax": "JSON: one record on each line, or one array of records",
    "line-encoding": "UTF-8 without NUL bytes",
    "line-too-long": "one record on each line",
    "file-changed": "a file that can be read, and stays as it is meanwhile",
    "image-missing": "an image file at that path below the source's root",
    "image-outside": "a path that stays below the source's root",
    "image-denied": "a file that may be read",
    "image-unreadable": "a file that can be opened",
    "image-not-a-file": "an image file",
    "image-empty": _WHOLE_FILE,
    "image-unknown": _WHOLE_FILE,
    "image-damaged": _WHOLE_FILE,
    "image-deep": "8 bits a channel, or images.raster with a scaling for the source",
    "image-too-large": f"at most {MAX_PIXELS:,} pixels",
    "image-tiny": f"at least {MIN_SIDE} pixels on each side",
    "image-strip": f"a longer side of at most {MAX_RATIO} times the shorter one",
    "image-bands": _RASTER,
    "image-choice": "#plane=, slice=, fraction= or volume= of a NIfTI volume, frame= of a DICOM file, window= of others",
    "image-window": _RASTER,
    "image-complex": "real pixel values",
    "image-inks": "grey or RGB pixels",
    "dicom-compressed": _DICOM,
    "dicom-frame": "a frame that the file holds",
    "dicom-no-pixels": "a DICOM file with pixel data",
    "dicom-photometric": "grey or RGB pixels",
    "dicom-syntax": _DICOM,
    "dicom-series": "grey slices of one series, all of one size",
    "dicom-window": "a window with a width above 0",
    "nifti-affine": "an affine that can be inverted",
    "nifti-colour": "one number a voxel",
    "nifti-shape": _ONE_SLICE,
    "box-syntax": "<ref>phrase</ref><box>[[x1, y1, x2, y2], ...]</box>",
    "box-range": "whole numbers from 0 to 1000 over the image's width and height",
    "box-order": "[x1, y1, x2, y2] with x1 < x2 and y1 < y2",
    "quad-syntax": "<quad>[[x1, y1, x2, y2, x3, y3, x4, y4], ...]</quad>",
    "quad-range": "whole numbers from 0 to 1000 over the image's width and height",
    "direction-words": "texts that stay true when the image is flipped or turned",
    "answer-endless": f"an answer of at most {MAX_ANSWER_CHARS:,} characters",
    "answer-repeats": "an answer that comes to an end",
    "text-replacement": "the characters that were meant",
    "text-mojibake": "text decoded as what it was encoded as",
    "text-control": "printable characters, tabs and line ends",
    "duplicate": "every sample once",
    "near-duplicate-image": "every picture once",
    "unusable": "a sample that can be read",
    "unexpected": "a check that can judge every record",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found: where, what, what was expected instead, and the fix. An error makes its sample unusable."""

    severity: Severity
    code: str
    where: str  # file:line
    found: str
    expected: str
    fix: str
    source: str
    sample: int | None = None  # number within the source, from 0; None: it is about more than one sample
    image: str | None = None  # path of the image file it is about


def note(
    severity: Severity, code: str, found: str, fix: str, *, expected: str | None = None, image: str | None = None
) -> Finding:
    """A finding that does not know its sample yet; what was expected follows from the code unless it is given."""
    return Finding(severity, code, "", found, EXPECTED[code] if expected is None else expected, fix, "", image=image)


def note_error(error: DataError, subject: str = "", image: str | None = None) -> Finding:
    """What a reader raised, as a finding that does not know its sample yet; `subject` goes before what was found."""
    if isinstance(error, ImageError | RecordError):
        expected = EXPECTED.get(error.code, EXPECTED["unusable"])
        return note("error", error.code, subject + error.found, error.fix, expected=expected, image=image)
    return note("error", "unusable", subject + error.reason, "see the message", image=image)

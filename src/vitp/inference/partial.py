"""What a prediction has finished, on disk, so that a killed one goes on where it was.

A hidden folder beside the outputs holds one raw file a layer and a small JSON that says how far they are valid. What a killed
process wrote after its last note is written again, with the same bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from vitp.errors import OutputError
from vitp.files import raise_if_unwritable, write_json

_NOTE = "state.json"
_SECONDS = 2.0  # between notes: what a kill costs, against the waits for the disk


class Partial:
    """Layers that grow, and how many units of work (rows of windows, slices) they hold."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], layers: Mapping[str, int]) -> None:
        """Go on with the folder's work, or begin.

        Args:
            folder: hidden, beside the output.
            fingerprint: what must be equal for the work to be the same, JSON-ready.
            layers: bytes of each layer when it is complete.

        Raises:
            OutputError: it holds other work, no space left, or not writable.
        """
        self.folder = folder
        self._about = {"fingerprint": json.loads(json.dumps(fingerprint)), "layers": dict(layers)}
        self._files: dict[str, BinaryIO] = {}
        self._noted = time.monotonic()
        try:
            self.done = self._read_note()
            self._check_space(sum(layers.values()))
            folder.mkdir(parents=True, exist_ok=True)
            if self.done == 0:
                write_json(folder / _NOTE, {**self._about, "done": 0})
            for name in layers:
                self._files[name] = open(self.path(name), "r+b" if self.path(name).exists() else "w+b")  # noqa: SIM115
        except OSError as error:
            self.close()
            raise_if_unwritable(error, folder)
            raise OutputError(f"{folder} cannot be made ({error.strerror}); choose another --out") from error

    def path(self, layer: str) -> Path:
        """The raw file of a layer."""
        return self.folder / f"{layer}.raw"

    def write(self, layer: str, offset: int, values: NDArray[Any]) -> None:
        """Put values at a byte of a layer.

        Raises:
            OutputError: no space left; what was noted stays good.
        """
        try:
            file = self._files[layer]
            file.seek(offset)
            file.write(np.ascontiguousarray(values).data)
        except OSError as error:
            raise self._full(error) from error

    def note(self, done: int, *, now: bool = False) -> None:
        """Remember that `done` units are complete; on disk every two seconds, or `now`.

        Raises:
            OutputError: no space left.
        """
        self.done = done
        if not now and time.monotonic() - self._noted < _SECONDS:
            return
        try:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            write_json(self.folder / _NOTE, {**self._about, "done": done})
        except OSError as error:
            raise self._full(error) from error
        self._noted = time.monotonic()

    def close(self) -> None:
        """Let go of the files, which stay."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files = {}

    def remove(self) -> None:
        """Delete all of it."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read_note(self) -> int:
        file = self.folder / _NOTE
        if not file.is_file():
            return 0
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            same, done = {key: found[key] for key in self._about}, int(found["done"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise OutputError(f"{file} is damaged; delete {self.folder}, or say --overwrite to start anew") from error
        if same != self._about:
            before, now = same["fingerprint"], self._about["fingerprint"]
            changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)) or ["layers"]
            raise OutputError(
                f"{self.folder} holds an unfinished prediction made otherwise ({', '.join(changed[:4])} changed): "
                "run it as before to go on, or say --overwrite to start anew"
            )
        complete = all(self.path(name).is_file() for name in self._about["layers"])
        return done if complete else 0

    def _check_space(self, wanted: int) -> None:
        have = sum(self.path(name).stat().st_size for name in self._about["layers"] if self.path(name).is_file())
        place = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if wanted - have > free:
            raise OutputError(
                f"no space left for {self.folder.parent}: the prediction needs {(wanted - have) / 1e9:.1f} GB while it is "
                f"made, and {free / 1e9:.1f} GB are free; choose another --out"
            )

    def _full(self, error: OSError) -> OutputError:
        try:
            raise_if_unwritable(error, self.folder)
        except OutputError as known:
            return OutputError(f"{known}; the same command then goes on where it stopped")
        return OutputError(f"{self.folder} cannot be written ({error.strerror or error}); choose another --out")


def raw_rows(path: Path, top: int, count: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Units `top` to `top + count` of a layer whose units have `shape`, uint8 [count, *shape]."""
    size = int(np.prod(shape))
    values = np.fromfile(path, dtype=np.uint8, count=count * size, offset=top * size)
    return values.reshape(count, *shape)

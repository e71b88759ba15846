"""Weights as they lie on disk: one safetensors file or many, read one tensor at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vitp.backbone.layouts import Place
from vitp.errors import CheckpointError
from vitp.train.checkpoint import model_tensors

PICKLES = {".pt", ".pth", ".bin", ".pkl", ".ckpt", ".tar"}
# What a checkpoint on the hub consists of for us; pickles and remote code are never fetched.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_RECOMPUTED = ("rotary_emb.inv_freq",)  # constants that old checkpoints carry along


@dataclass(frozen=True)
class StoredTensors:
    """All tensors of a checkpoint: which file each is in, and its shape. Their numbers stay on disk until asked for."""

    origin: Path
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> Tensor:
        """One tensor, in the dtype it is stored in.

        Raises:
            CheckpointError: the file went away or is damaged.
        """
        for _, tensor in self._of(self.files[name], [name]):
            return tensor
        raise AssertionError(name)

    def each(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, file by file, so that one tensor is in memory at a time.

        Raises:
            CheckpointError: a file went away or is damaged.
        """
        by_file: dict[Path, list[str]] = {}
        for name, file in self.files.items():
            by_file.setdefault(file, []).append(name)
        for file, names in by_file.items():
            yield from self._of(file, names)

    @staticmethod
    def _of(file: Path, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in names:
                    yield name, opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{file}: not a complete safetensors file ({error}); it was cut short or is of another format, so copy or "
        "download it again"
    )


def refuse_pickle(path: Path) -> None:
    """Say why a pickle is not loaded.

    Raises:
        CheckpointError: `path` has the suffix of one.
    """
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path}: a pickle can run any code while it is read, so it is never loaded; take the checkpoint's safetensors, "
            "or save the weights with safetensors.torch.save_file"
        )


def open_stored(path: Path) -> StoredTensors:
    """The tensors of one .safetensors file, or of a folder: its index and shards, or its only safetensors file.

    Raises:
        CheckpointError: nothing there, a pickle, a shard that the index names is missing, or a file is cut short.
    """
    if path.is_dir():
        index = sorted(path.glob("*.safetensors.index.json"))
        if index:
            return _open_files(path, _shards(index[0]), index[0])
        found = [path / "model.safetensors"] if (path / "model.safetensors").is_file() else []
        found = found or sorted(path.glob("*.safetensors"))
        if len(found) == 1:
            return _open_files(path, {found[0]: None}, found[0])
        pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
        if pickles and not found:
            refuse_pickle(pickles[0])
        text = f"{len(found)} safetensors files and no model.safetensors.index.json" if found else "no safetensors file"
        raise CheckpointError(f"{path}: holds {text}; give the folder of a whole checkpoint, or one file")
    refuse_pickle(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file or folder")
    return _open_files(path, {path: None}, path)


def _shards(index: Path) -> dict[Path, set[str] | None]:
    """Each shard with the names that the index says are in it."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards: dict[Path, set[str] | None] = {}
        for name, file in sorted(named.items()):
            place = index.parent / Path(file).name  # a name, never a way out of the folder
            kept = shards.setdefault(place, set())
            assert kept is not None
            kept.add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: is no index of shards ({error!r}); download it again") from error
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(
            f"{missing[0]}: this shard is missing ({len(missing)} of {len(shards)} that {index.name} names are); "
            "download the checkpoint again"
        )
    return shards


def _open_files(origin: Path, wanted: Mapping[Path, set[str] | None], index: Path) -> StoredTensors:
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file, expected in wanted.items():
        try:
            with safe_open(file, framework="pt") as opened:
                inside = list(opened.keys())
                shapes.update({name: tuple(opened.get_slice(name).get_shape()) for name in inside})
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error
        lacking = sorted((expected or set()) - set(inside))
        if lacking:
            raise CheckpointError(f"{file}: lacks '{lacking[0]}', which {index.name} says is in it; download it again")
        files.update(dict.fromkeys(inside, file))
    return StoredTensors(origin, files, shapes)


def local_copy(name: str) -> Path:
    """Where a checkpoint lies on this machine: a path as it is, a hub id after fetching what is not here yet.

    Raises:
        CheckpointError: no such path, and the hub does not answer or knows no such id.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    _require_id(name)
    from huggingface_hub import snapshot_download

    return _from_hub(name, lambda: snapshot_download(name, allow_patterns=_WANTED))


def _require_id(name: str) -> None:
    if not _HUB_ID.fullmatch(name) or Path(name).suffix in PICKLES | {".safetensors", ".gguf"}:
        raise CheckpointError(f"{name}: no such file or folder, and not a hub id (owner/name)")


def hub_file(name: str, file: str) -> Path:
    """One small file of a checkpoint on the hub, fetched if it is not here yet.

    Raises:
        CheckpointError: the hub does not answer, or has no such id or file.
    """
    _require_id(name)
    from huggingface_hub import hf_hub_download

    return _from_hub(name, lambda: hf_hub_download(name, file))


def _from_hub(name: str, fetch: Callable[[], str]) -> Path:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(fetch())
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CheckpointError(
            f"{name}: no such folder here, and the hub could not give it ({said}); download it where there is a network "
            "(hf download) and give the folder"
        ) from error


def fill(
    model: nn.Module,
    stored: StoredTensors,
    place: Callable[[str], Place | None],
    *,
    shape: Callable[[Tensor, str], Tensor] = lambda tensor, _: tensor,
    ignored: frozenset[str] = frozenset(),
) -> None:
    """Copy every stored tensor to its place in `model`, converting dtypes; nothing is left over and nothing left out.

    Args:
        model: whose parameters and persistent buffers are overwritten.
        stored: where the numbers are.
        place: from a stored name to a place in `model`; None where there is none.
        shape: brings a stored tensor into the shape of the model's tensor of that name.
        ignored: stored names that are known to be superfluous.

    Raises:
        CheckpointError: names the first tensor that is left over, missing or of another shape.
    """
    own = model_tensors(model)
    places = {name: place(name) for name in stored.files if name not in ignored and not name.endswith(_RECOMPUTED)}
    _check_complete(own, places, stored.origin)
    with torch.no_grad():
        for name, tensor in stored.each():
            where = places.get(name)
            if where is None:
                continue
            target, given = where.view(own[where.name]), shape(tensor, where.name)
            if target.shape != given.shape:
                raise CheckpointError(
                    f"{stored.files[name]}: '{name}' is {list(given.shape)} in the file and {list(target.shape)} in the "
                    "model that the configuration describes; the two do not belong together"
                )
            target.copy_(given)


def _check_complete(own: Mapping[str, Any], places: Mapping[str, Place | None], origin: Path) -> None:
    extra = sorted(name for name, where in places.items() if where is None or where.name not in own)
    reached: dict[str, set[int]] = {}
    for where in places.values():
        if where is not None:
            reached.setdefault(where.name, set()).update({where.part} if where.part is not None else {0, 1, 2})
    missing = sorted(name for name in own if reached.get(name, set()) != {0, 1, 2})
    if missing or extra:
        first = (
            f"'{extra[0]}' in the file has no place in the model"
            if extra
            else f"nothing in the file is for '{missing[0]}'"
        )
        raise CheckpointError(
            f"{origin}: belongs to another architecture: {first} ({len(missing)} missing, {len(extra)} left over); give the "
            "checkpoint that its config.json describes"
        )

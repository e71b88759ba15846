"""Data behind URLs (s3://, gs://, hf://, https://, ...), through fsspec.

Annotations, shards and tables are fetched once into the cache, and again when the server says that they changed. Images
are read when they are asked for and not kept.
"""

from __future__ import annotations

import errno
import io
import posixpath
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vitp.cache import CacheEntry
from vitp.errors import DataError, MissingExtraError, VitpError
from vitp.images.decode import ImageError

URL = r"^[A-Za-z][A-Za-z0-9+.\-]*://"
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp",
             "az": "adlfs", "abfs": "adlfs", "abfss": "adlfs", "hf": "huggingface_hub", "sftp": "paramiko",
             "ssh": "paramiko", "oss": "ossfs", "dropbox": "dropboxdrivefs", "webhdfs": "requests"}  # fmt: skip


def is_url(text: str) -> bool:
    """Whether a path is a URL."""
    return re.match(URL, text) is not None


def joined(root: str, name: str) -> str:
    """The URL of a name below a root, or the name where that is a URL."""
    return name if is_url(name) else f"{root.rstrip('/')}/{name}"


def below(root: str, name: str) -> str:
    """The URL of an image below a root.

    Raises:
        ImageError: it leads out of the root.
    """
    root = root.rstrip("/")
    inner = name.removeprefix(f"{root}/")
    plain = posixpath.normpath(inner)
    if plain.startswith(("/", "../")) or plain in ("..", ".") or is_url(inner) or "\0" in inner:
        found = f"leads out of the source's root {root}"
        raise ImageError("image-outside", found, "move it below the root or choose a higher root", ascii(name)[1:-1])
    return f"{root}/{plain}"


def fetched(url: str) -> Path:
    """The file behind a URL, in the cache.

    Raises:
        DataError: there is no such file, it may not be read, or it cannot be reached.
        MissingExtraError: the package for this kind of URL is not installed.
        OutputError: the cache is full or cannot be written to.
    """
    with _reached(url):
        system, path = _system(url)
        info = system.info(path)
        state = f"{system.ukey(path)} {info.get('size')} {info.get('ETag')} {info.get('mtime')}"

        def fetch(target: Path) -> None:
            try:
                system.get_file(path, str(target))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the cache's mistake; all others are the server's
                    raise
                raise _FetchError from error

        return CacheEntry(url, f"fetched {state}").made(posixpath.basename(url.rstrip("/")), fetch)


def files(url: str) -> list[str]:
    """The URLs of what a URL stands for: a file, a pattern with ``*``, or all files of a folder, sorted.

    Raises:
        DataError, MissingExtraError: as `fetched` does.
    """
    with _reached(url):
        system, path = _system(url)
        if any(letter in path for letter in "*?["):
            names = system.glob(path)
        elif system.isdir(path):
            names = system.find(path)
        else:
            system.info(path)  # raises where there is nothing
            return [url]
        plain = path.strip("/")
        head = url.rstrip("/").removesuffix(plain)  # as the user writes it: memory://a, not memory:///a
        if head == url.rstrip("/"):
            return sorted(str(system.unstrip_protocol(name)) for name in names)
        return sorted(head + name.strip("/") for name in names)


class _FetchError(Exception):
    """What a server raised while a file was being fetched is the cause; no OSError, which would be the cache's."""


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Every way in which a URL cannot be reached, as one sentence."""
    try:
        yield
    except VitpError:
        raise
    except Exception as error:  # what servers' libraries raise has no common ancestor
        cause = error.__cause__ if isinstance(error, _FetchError) else error
        _, found, fix = _explained(cause or error, url)
        raise DataError(f"{found}; {fix}", url) from cause


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """An image behind a URL, fetched whenever it is opened."""

    url: str

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return posixpath.basename(self.url)

    def __str__(self) -> str:
        return self.url

    def open(self) -> BinaryIO:
        """All of it, in memory.

        Raises:
            ImageError: there is no such object, it may not be read, or it cannot be reached.
            MissingExtraError: the package for this kind of URL is not installed.
        """
        try:
            system, path = _system(self.url)
            return io.BytesIO(system.cat_file(path))
        except VitpError:
            raise
        except Exception as error:  # as in `_reached`
            raise ImageError(*_explained(error, self.url), self.url) from error


def _system(url: str) -> tuple[Any, str]:
    """Fsspec's file system and the path in it; file systems are made anew in forked processes by fsspec itself."""
    import fsspec

    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        how = f"the package {package}; install it with: pip install {package}" if package else f"a package: {error}"
        raise MissingExtraError(f"{url}: reading {protocol}:// needs {how}") from error
    except ValueError as error:
        if "protocol not known" not in str(error).lower():
            raise
        known = "s3://, gs://, az://, hf://, https://"
        raise DataError(
            f"has the unknown protocol {protocol}://; known are {known} and others of fsspec", url
        ) from error
    return system, path


def _explained(error: BaseException, url: str) -> tuple[str, str, str]:
    """Code, what was found, and the fix, for whatever a file system raised."""
    if isinstance(error, FileNotFoundError):
        return "image-missing", "does not exist", "correct the URL or put the file there"
    if isinstance(error, PermissionError):
        return "image-denied", "may not be read", "log in where it lies, or ask its owner for permission"
    text = " ".join(str(error).split())[:120].rstrip(". ")
    detail = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return "image-unreadable", f"cannot be reached ({detail})", "check the URL, the network and your credentials"

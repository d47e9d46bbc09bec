"""Writing files so that nothing is ever half there."""

import contextlib
import glob
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import psutil
from etils import epath

# A path on a disk, or in a bucket.
AnyPath: TypeAlias = Path | epath.Path


def is_remote(path: AnyPath) -> bool:
    """Whether `path` lies in a bucket (`gs://`), where every write of a file is atomic."""
    return "://" in os.fspath(path)


def absolute(path: AnyPath) -> epath.Path:
    """`path` whatever the working folder is; one in a bucket is so already."""
    return epath.Path(path) if is_remote(path) else epath.Path(path).absolute()


@contextlib.contextmanager
def atomic_write(path: AnyPath) -> Iterator[Path]:
    """Yields a temporary path and moves what was written there to `path` on success.

    Args:
      path: The file to write, on a disk or in a bucket. Its folder is made if it is missing.

    Yields:
      A path with the same suffix, beside `path` where that is on a disk. It is removed when the
      body raises, and by the next write of `path` when the process was killed.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / path.name
            yield written
            epath.Path(written).copy(path, overwrite=True)
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Hosts may share the folder: each clears up after its own processes only.
    prefix = f".{path.name}.{socket.gethostname()}."
    for leftover in path.parent.glob(f"{glob.escape(prefix)}*.tmp{path.suffix}"):
        process = leftover.name.removeprefix(prefix).partition(".")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            leftover.unlink(missing_ok=True)
    temporary = path.with_name(f"{prefix}{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: AnyPath, text: str) -> None:
    """Writes `text` as UTF-8 with Unix line ends, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: AnyPath, value: Any) -> None:
    """Writes `value` as JSON, atomically."""
    write_text(path, to_json(value))


def to_json(value: Any) -> str:
    """JSON whose bytes depend on nothing but the value."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def read_json(path: AnyPath) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_if_whole(path: AnyPath) -> dict[str, Any]:
    """What a process told of itself in JSON; nothing where it did not, or a power cut left half."""
    try:
        return read_json(path)
    except (FileNotFoundError, ValueError):
        return {}


def sha256(path: AnyPath) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

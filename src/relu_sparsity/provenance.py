"""What each result was made from, written into the result itself.

A result file ends with the fingerprint of its job, as a comment of its format; in JSON it is a
key, in the mask files an array.
So a file tells whether it is current, wherever it came from: this machine, a clone, DVC's cache.
"""

import json
import re
import zipfile
from pathlib import Path

import numpy as np

from relu_sparsity.files import write_json, write_text

_COMMENTS = {
    ".html": "<!-- fingerprint: {} -->",
    ".md": "<!-- fingerprint: {} -->",
    ".svg": "<!-- fingerprint: {} -->",
    ".rst": ".. fingerprint: {}",
    ".tex": "% fingerprint: {}",
}
_TAIL = 100
_FINGERPRINT = re.compile(r"fingerprint: ([0-9a-f]+)(?: -->)?\s*$")


def can_sign(path: Path) -> bool:
    """Whether the file carries a fingerprint. CSV, and a run's units, have no room for one."""
    return path.suffix in (*_COMMENTS, ".json") or path.name == "mask.npz"


def sign(path: Path, fingerprint: str) -> None:
    """Writes a fingerprint into a result file, atomically.

    Args:
      path: A file of a format that `can_sign`.
      fingerprint: What the file was made from.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        write_json(path, json.loads(text) | {"fingerprint": fingerprint})
    else:
        write_text(path, f"{text.rstrip()}\n\n{_COMMENTS[path.suffix].format(fingerprint)}\n")


def signature(path: Path) -> str | None:
    """Reads a result file's fingerprint; None where it has none, is not there or not whole."""
    try:
        if path.suffix == ".json":
            return json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return str(arrays["fingerprint"])
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL))
            match = _FINGERPRINT.search(file.read().decode(errors="replace"))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    return match[1] if match else None

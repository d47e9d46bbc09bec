"""What each result was made from, written into the result itself.

A result file ends with the fingerprint of its job, as comments of its format; in JSON it is a key,
in the mask files an array. So a file tells whether it is current, wherever it came from: this
machine, a clone, DVC's cache; and where it is not, what has changed since.
"""

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from relu_sparsity.files import write_json, write_text
from relu_sparsity.fingerprint import Fingerprint

_COMMENTS = {
    ".html": "<!-- {} -->",
    ".md": "<!-- {} -->",
    ".svg": "<!-- {} -->",
    ".rst": ".. {}",
    ".tex": "% {}",
    ".yaml": "# {}",
}
_TAIL = 100
_HASH = re.compile(r"fingerprint: ([0-9a-f]+)(?: -->)?\s*$")
_PARTS = re.compile(r"^\S+ made from: ({.*})(?: -->)?$", re.MULTILINE)


def can_sign(path: Path) -> bool:
    """Whether the file carries a fingerprint. CSV, and a run's units, have no room for one."""
    return path.suffix in (*_COMMENTS, ".json") or path.name == "mask.npz"


def sign(path: Path, fingerprint: Fingerprint) -> None:
    """Writes a fingerprint into a result file, atomically.

    Args:
      path: A file of a format that `can_sign`, but for the masks, which are written with theirs.
      fingerprint: What the file was made from.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        write_json(path, json.loads(text) | as_keys(fingerprint))
        return
    parts = json.dumps(fingerprint.as_json(), sort_keys=True)
    # Two hyphens may not stand in a comment of XML.
    parts = parts.replace("--", "-\\u002d")
    comment = _COMMENTS[path.suffix]
    lines = [
        comment.format(f"made from: {parts}"),
        comment.format(f"fingerprint: {fingerprint.hash}"),
    ]
    write_text(path, "\n\n".join([text.rstrip(), *lines]) + "\n")


def as_keys(fingerprint: Fingerprint) -> dict[str, Any]:
    """The keys that a signed JSON file has."""
    return {"fingerprint": fingerprint.hash, "made_from": fingerprint.as_json()}


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
            match = _HASH.search(file.read().decode(errors="replace"))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
    return match[1] if match else None


def made_from(path: Path) -> dict[str, Any] | None:
    """Reads what a result file was made from; None where it does not tell.

    Returns:
      The `parameters`, `code` and `made_from` of its `Fingerprint`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)["made_from"]
        parts = _PARTS.findall(text)
        return json.loads(parts[-1]) if parts else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def differences(before: Mapping[str, Any], fingerprint: Fingerprint) -> list[str]:
    """What has changed since a result was made, in words.

    Args:
      before: What `made_from` read from it.
      fingerprint: What it depends on now.

    Returns:
      A line for each parameter that differs, with both values; one for the files of code whose
      meaning changed; one for the results before it that are other ones now.
    """
    now = fingerprint.as_json()
    was, becomes = _flat(before.get("parameters")), _flat(now["parameters"])
    parameters = [
        f"{key}: {_shown(was, key)} -> {_shown(becomes, key)}"
        for key in sorted(was | becomes)
        if key not in was or key not in becomes or was[key] != becomes[key]
    ]
    changed = {
        part: sorted(
            key
            for key in {*(before.get(part) or {}), *now[part]}
            if (before.get(part) or {}).get(key) != now[part].get(key)
        )
        for part in ("code", "made_from")
    }
    lines = parameters
    if changed["code"]:
        lines.append(f"the code changed: {', '.join(changed['code'])}")
    if changed["made_from"]:
        lines.append(f"made from other results: {', '.join(changed['made_from'])}")
    return lines


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    inner = [_flat(each, f"{key}.{name}" if key else name) for name, each in value.items()]
    return {name: each for part in inner for name, each in part.items()}


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"

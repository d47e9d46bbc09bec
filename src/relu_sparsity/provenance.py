"""What results were made from, and whether they still are what was written.

Each job leaves a record beside its results: their fingerprint, its parts, and the SHA-256 of every
result file. So a result tells whether it is current, wherever it came from: this machine, a clone,
DVC's cache; where it is not, what has changed since; and where somebody changed it, that it did.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_sparsity.files import read_json, sha256, write_json
from relu_sparsity.fingerprint import Fingerprint
from relu_sparsity.schema import flat


@dataclass(frozen=True)
class Record:
    """What a job wrote about its results.

    Attributes:
      fingerprint: The hash of what they were made from.
      made_from: The parts of the fingerprint, as `Fingerprint.as_json`.
      sha256: By name, the digest of every result file.
    """

    fingerprint: str
    made_from: Mapping[str, Any]
    sha256: Mapping[str, str]


def read_record(path: Path) -> Record | None:
    """Reads a record; None where it is missing or is none."""
    try:
        content = read_json(path)
        return Record(content["fingerprint"], content["made_from"], content["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record_keys(fingerprint: Fingerprint, results: Iterable[Path]) -> dict[str, Any]:
    """The keys of a record, for results that are there."""
    return {
        "fingerprint": fingerprint.hash,
        "made_from": fingerprint.as_json(),
        "sha256": {path.name: sha256(path) for path in results},
    }


def write_record(path: Path, fingerprint: Fingerprint, results: Iterable[Path]) -> None:
    """Records what results that are there were made from."""
    write_json(path, record_keys(fingerprint, results))


class Digests:
    """SHA-256 of files, remembered as long as size and modification time stay.

    Args:
      path: Where they are remembered; None remembers them in this process only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        try:
            self._known = read_json(path) if path else {}
        except (OSError, ValueError):
            self._known = {}
        self._before = dict(self._known)

    def of(self, path: Path) -> str:
        """The digest of a file.

        Raises:
          OSError: It cannot be read.
        """
        stat = path.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(str(path))
        if known is None or known[:3] != state:
            known = self._known[str(path)] = [*state, sha256(path)]
        return known[3]

    def save(self) -> None:
        """Remembers them for the next process."""
        if self._path is not None and self._known != self._before:
            write_json(self._path, self._known)
            self._before = dict(self._known)


def changed_files(record: Record, results: Iterable[Path], digests: Digests) -> list[Path]:
    """The results that are there and are not what their job wrote."""
    return [
        path
        for path in results
        if path.is_file() and digests.of(path) != record.sha256.get(path.name)
    ]


def differences(before: Mapping[str, Any], fingerprint: Fingerprint) -> list[str]:
    """What has changed since a result was made, in words.

    Args:
      before: `made_from` of its record.
      fingerprint: What it depends on now.

    Returns:
      A line for each parameter that differs, with both values; one for each package with another
      version; one for the files of code whose meaning changed; one for the results before it that
      are other ones now.
    """
    now = fingerprint.as_json()
    lines = [
        f"{prefix}{key}: {_shown(was, key)} -> {_shown(becomes, key)}"
        for part, prefix in (("parameters", ""), ("packages", "the package "))
        for was, becomes in [(flat(before.get(part)), flat(now[part]))]
        for key in sorted(was | becomes)
        if key not in was or key not in becomes or was[key] != becomes[key]
    ]
    for part, told in (("code", "the code changed"), ("made_from", "made from other results")):
        was = before.get(part) or {}
        if changed := sorted(
            key for key in {*was, *now[part]} if was.get(key) != now[part].get(key)
        ):
            lines.append(f"{told}: {', '.join(changed)}")
    return lines


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "not there"

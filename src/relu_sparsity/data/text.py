"""The `text` source: the user's own .txt, .jsonl and .jsonl.gz files."""

import glob
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from relu_sparsity.errors import UserError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz")

_JSONL = 'allowed: on each line a JSON object with a string "text"'


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Returns the files that the patterns match, sorted, each once.

    Args:
      patterns: Paths or glob patterns (`**` included), relative to the working folder.

    Raises:
      UserError: There is no pattern, one matches nothing, or it matches something that is not
        a file of an allowed kind.
    """
    kinds = ", ".join(SUFFIXES)
    if not patterns:
        raise UserError(f"data.files is empty; allowed: paths or patterns of {kinds} files")
    found: set[Path] = set()
    for pattern in patterns:
        # A path that exists is that path, even where its name has brackets in it.
        matches = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)
        if not matches:
            raise UserError(
                f"data.files: no such file: {pattern!r}; allowed: paths or patterns of {kinds} "
                "files, relative to the working folder"
            )
        found.update(Path(match) for match in matches)
    for path in found:
        if not path.is_file() or not path.name.endswith(SUFFIXES):
            raise UserError(f"data.files: {path}: not a text file; allowed: {kinds} files")
    return sorted(found, key=lambda path: (path.name, path.as_posix()))


def digests(patterns: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the name and the SHA-256 of every file, in the order of `find_files`."""
    named = []
    for path in find_files(patterns):
        with path.open("rb") as file:
            named.append((path.name, hashlib.file_digest(file, "sha256").hexdigest()))
    return named


def documents(path: Path) -> Iterator[tuple[int, str]]:
    """Yields a file's documents, each with the number of its first line.

    In a .txt file, paragraphs that blank lines separate are documents. In a .jsonl file, every
    line is an object whose "text" is a document. Documents of white space alone are left out.

    Args:
      path: A .txt, .jsonl or .jsonl.gz file, in UTF-8.

    Raises:
      UserError: The file cannot be read, is not UTF-8, holds no text, or a line of it is not a
        JSON object with a string "text". The message has the line's number.
    """
    parse = _paragraphs if path.suffix == ".txt" else _json_texts
    empty = True
    for line, text in parse(path):
        if text.strip():
            empty = False
            yield line, text
    if empty:
        raise UserError(f"{path}: line 1: the file holds no text; allowed: at least one document")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: line {number}: not UTF-8: byte 0x{error.object[error.start]:02x} at column "
            f"{error.start + 1} ({error.reason}); allowed: UTF-8 text"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{path}: line {number + 1}: cannot be read: {error}; "
            f"allowed: readable {', '.join(SUFFIXES)} files"
        ) from None


def _paragraphs(path: Path) -> Iterator[tuple[int, str]]:
    first, lines = 1, list[str]()
    for number, line in _lines(path):
        if line.strip():
            if not lines:
                first = number
            lines.append(line)
        elif lines:
            yield first, "".join(lines).strip()
            lines = []
    if lines:
        yield first, "".join(lines).strip()


def _json_texts(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in _lines(path):
        where = f"{path}: line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}: {_shown(line)}; {_JSONL}") from None
        if not isinstance(value, dict):
            raise UserError(f"{where}: not an object: {_shown(line)}; {_JSONL}")
        if "text" not in value:
            raise UserError(f'{where}: no "text" among the keys {sorted(value)}; {_JSONL}')
        text = value["text"]
        if not isinstance(text, str):
            raise UserError(f'{where}: "text" is not a string: {_shown(repr(text))}; {_JSONL}')
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f'{where}: "text" is not Unicode text: {error}; {_JSONL}') from None
        yield number, text


def _shown(found: str) -> str:
    found = found.strip()
    return repr(found if len(found) <= 60 else found[:57] + "...")

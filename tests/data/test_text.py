import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relu_sparsity.data import text
from relu_sparsity.errors import UserError


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_paragraphs_of_a_txt_file_are_documents(tmp_path: Path):
    path = write(tmp_path / "a.txt", b"\n\nOne\nstill one.\n \t\nTwo.\r\n\r\n\r\n  Three")
    assert list(text.documents(path)) == [(3, "One\nstill one."), (6, "Two."), (9, "Three")]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_texts_of_a_jsonl_file_are_documents(tmp_path: Path, suffix: str):
    lines = [{"text": "One\n\nstill one.", "url": 1}, {"text": " "}, {"text": "Zwölf"}]
    path = write(tmp_path / f"a{suffix}", "\n".join(map(json.dumps, lines)).encode())
    assert list(text.documents(path)) == [(1, "One\n\nstill one."), (3, "Zwölf")]


@given(st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1))
def test_any_text_comes_back_from_jsonl(tmp_path_factory, documents: list[str]):
    content = "".join(json.dumps({"text": document}) + "\n" for document in documents)
    path = write(tmp_path_factory.mktemp("jsonl") / "a.jsonl", content.encode())
    assert [document for _, document in text.documents(path)] == documents


def test_a_byte_order_mark_is_not_text(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "One"}\n{"text": "Two"}\n')
    assert list(text.documents(path)) == [(1, "One"), (2, "Two")]


GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"line 1: the file holds no text"),
        ("a.txt", b" \n\n", r"line 1: the file holds no text"),
        ("a.jsonl", b"", r"line 1: the file holds no text"),
        ("a.jsonl.gz", b"", r"line 1: the file holds no text"),
        ("a.jsonl", b'{"text": ""}\n', r"line 1: the file holds no text"),
        ("a.txt", b"good\n\nb\xe9d\n", r"line 3: not UTF-8: byte 0xe9 at column 2"),
        ("a.jsonl", GOOD + b'{"text": "b\xe9d"}\n', r"line 2: not UTF-8: byte 0xe9 at column 12"),
        ("a.jsonl.gz", GOOD + b"\xff\n", r"line 2: not UTF-8: byte 0xff at column 1"),
        ("a.jsonl", GOOD + b"{text: 1}\n", r"line 2: not JSON: .*'{text: 1}'"),
        ("a.jsonl", GOOD + b"\n" + GOOD, r"line 2: not JSON"),
        ("a.jsonl", b"[" * 100_000, r"line 1: not JSON"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}\n", r"line 1: not JSON"),
        ("a.jsonl", GOOD + b'["text"]\n', r"line 2: not an object: '\[\"text\"\]'"),
        ("a.jsonl", GOOD + b'{"txt": "x"}\n', r"line 2: no \"text\" among the keys \['txt'\]"),
        ("a.jsonl", GOOD + b'{"text": 3}\n', r"line 2: \"text\" is not a string: '3'"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1: \"text\" is not Unicode text"),
    ],
)
def test_bad_files_name_the_file_and_the_line(
    tmp_path: Path, name: str, content: bytes, message: str
):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: {message}.*; allowed: "):
        list(text.documents(path))


def test_a_gz_file_that_is_cut_off_or_none(tmp_path: Path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 1000)[:-10])
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: line \d+: cannot be read: Compressed"):
        list(text.documents(path))
    path.write_bytes(GOOD)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: line 1: cannot be read: Not a gzipped"):
        list(text.documents(path))


def test_find_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z.txt", "b/a.jsonl", "b/c/m[1].txt"):
        write(tmp_path / name, GOOD)
    monkeypatch.chdir(tmp_path)
    found = text.find_files(["**/*.txt", "b/*.jsonl", "z.txt", "b/c/m[1].txt"])
    assert found == [Path("b/a.jsonl"), Path("b/c/m[1].txt"), Path("z.txt")]
    assert [name for name, _ in text.digests(["**/*.txt"])] == ["m[1].txt", "z.txt"]


def test_digests_follow_the_content(tmp_path: Path):
    path = write(tmp_path / "a.txt", b"one")
    before = text.digests([str(path)])
    assert text.digests([str(path)]) == before
    write(path, b"two")
    assert text.digests([str(path)]) != before


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("missing.txt", r"no such file: '.*missing\.txt'; allowed: .*\.jsonl\.gz files"),
        ("*.jsonl", r"no such file: '.*\*\.jsonl'; allowed"),
        ("a.csv", r"a\.csv: not a text file; allowed: \.txt, \.jsonl, \.jsonl\.gz"),
        ("folder.txt", r"folder\.txt: not a text file"),
    ],
)
def test_files_that_are_not_there_or_not_text(tmp_path: Path, pattern: str, message: str):
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / "a.csv").touch()
    with pytest.raises(UserError, match=rf"data\.files: .*{message}"):
        text.find_files([str(tmp_path / pattern)])


def test_no_files():
    with pytest.raises(UserError, match=r"data\.files is empty"):
        text.find_files([])

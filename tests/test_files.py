"""A file is whole or not there."""

import subprocess
import sys

import pytest

from relu_sparsity.files import atomic_write, write_json


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a" / "file.json"
    write_json(path, {"b": 1, "a": [1.5]})
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_bytes() == before == b'{\n "a": [\n  1.5\n ],\n "b": 1\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_others_can_read_it(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {})
    (tmp_path / "plain").write_text("")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_a_killed_writer_left_is_cleared_by_the_next(tmp_path):
    path = tmp_path / "file.json"
    script = (
        "import os, sys; from pathlib import Path; from relu_sparsity.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert [left.suffix for left in tmp_path.iterdir()] == [".json"]
    assert not path.exists()
    write_json(path, {})
    assert list(tmp_path.iterdir()) == [path]


def test_another_hosts_process_is_not_taken_for_a_dead_one(tmp_path, monkeypatch):
    """Hosts may share the folder: a number that is no process here may be one there."""
    path = tmp_path / "result.csv"
    dead = 2**22 + 1
    monkeypatch.setattr("socket.gethostname", lambda: "there.example.org")
    theirs = tmp_path / f".result.csv.there.example.org.{dead}.tmp.csv"
    theirs.write_text("half")
    monkeypatch.setattr("socket.gethostname", lambda: "here")
    ours = tmp_path / f".result.csv.here.{dead}.tmp.csv"
    ours.write_text("half")
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert theirs.exists()
    assert not ours.exists()

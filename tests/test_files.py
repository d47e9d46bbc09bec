"""A file is whole or not there."""

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

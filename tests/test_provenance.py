"""A result tells what it was made from."""

import json

import pytest

from relu_sparsity.provenance import can_sign, sign, signature


@pytest.mark.parametrize("suffix", ["svg", "md", "html", "rst", "tex"])
def test_the_fingerprint_is_a_comment_at_the_end(tmp_path, suffix):
    path = tmp_path / f"result.{suffix}"
    path.write_text("content\n")
    assert can_sign(path)
    assert signature(path) is None
    sign(path, "0123abcd")
    assert signature(path) == "0123abcd"
    assert path.read_text().startswith("content\n")


def test_in_json_it_is_a_key(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"a": 1}')
    sign(path, "0123abcd")
    assert json.loads(path.read_text()) == {"a": 1, "fingerprint": "0123abcd"}
    assert signature(path) == "0123abcd"


def test_what_is_not_there_or_not_whole_has_none(tmp_path):
    assert signature(tmp_path / "missing.svg") is None
    for name, text in {"cut.json": '{"a": ', "list.json": "[1]", "cut.npz": "PK"}.items():
        (tmp_path / name).write_text(text)
        assert signature(tmp_path / name) is None


def test_csv_has_no_room_for_one(tmp_path):
    assert not can_sign(tmp_path / "table.csv")

"""A result tells what it was made from."""

import json
from xml.etree import ElementTree

import pytest

from relu_sparsity.fingerprint import Fingerprint
from relu_sparsity.provenance import can_sign, differences, made_from, sign, signature

MADE = Fingerprint(
    {"model": {"mlp_dim": 256, "note": "a--b -->"}, "seed": 0},
    {"model.py": "aa", "sparsity.py": "bb"},
    {"baseline seed 0": "cc"},
)


@pytest.mark.parametrize("suffix", ["svg", "md", "html", "rst", "tex"])
def test_the_fingerprint_is_a_comment_at_the_end(tmp_path, suffix):
    path = tmp_path / f"result.{suffix}"
    path.write_text("content\n")
    assert can_sign(path)
    assert signature(path) is None
    assert made_from(path) is None
    sign(path, MADE)
    assert signature(path) == MADE.hash
    assert made_from(path) == MADE.as_json()
    assert path.read_text().startswith("content\n")


def test_the_comment_is_one_that_xml_allows(tmp_path):
    path = tmp_path / "result.svg"
    path.write_text("<svg/>")
    sign(path, MADE)
    assert [child.tag for child in ElementTree.parse(path).iter()] == ["svg"]


def test_every_difference_is_named():
    now = Fingerprint(
        {"model": {"mlp_dim": 128, "note": "a--b -->"}, "seed": 0, "mask": {"step": 3}},
        {"model.py": "aa", "sparsity.py": "dd"},
        {"baseline seed 0": "ee"},
    )
    assert differences(MADE.as_json(), MADE) == []
    assert differences(MADE.as_json(), now) == [
        "mask.step: not there -> 3",
        "model.mlp_dim: 256 -> 128",
        "the code changed: sparsity.py",
        "made from other results: baseline seed 0",
    ]


def test_in_json_it_is_a_key(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"a": 1}')
    sign(path, MADE)
    assert json.loads(path.read_text())["a"] == 1
    assert signature(path) == MADE.hash
    assert made_from(path) == MADE.as_json()


def test_what_is_not_there_or_not_whole_has_none(tmp_path):
    assert signature(tmp_path / "missing.svg") is None
    for name, text in {"cut.json": '{"a": ', "list.json": "[1]", "cut.npz": "PK"}.items():
        (tmp_path / name).write_text(text)
        assert signature(tmp_path / name) is None


def test_csv_has_no_room_for_one(tmp_path):
    assert not can_sign(tmp_path / "table.csv")

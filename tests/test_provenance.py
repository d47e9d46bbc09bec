"""A result tells what it was made from, and whether it still is what was written."""

import os

from relu_sparsity.fingerprint import Fingerprint
from relu_sparsity.provenance import (
    Digests,
    changed_files,
    differences,
    read_record,
    write_record,
)

MADE = Fingerprint(
    {"model": {"mlp_dim": 256}, "seed": 0},
    {"model.py": "aa", "sparsity.py": "bb"},
    {"jax": "1.0"},
    {"train/baseline/seed0": "cc"},
)


def test_a_record_tells_what_results_were_made_from(tmp_path):
    result, path = tmp_path / "table.csv", tmp_path / "made_from" / "table.json"
    result.write_text("1,2\n")
    assert read_record(path) is None
    write_record(path, MADE, [result])
    record = read_record(path)
    assert record is not None
    assert record.fingerprint == MADE.hash
    assert record.made_from == MADE.as_json()
    assert changed_files(record, [result], Digests()) == []


def test_what_is_no_record_is_none(tmp_path):
    path = tmp_path / "record.json"
    for text in ("", "[]", "{}", '{"fingerprint": "a"}'):
        path.write_text(text)
        assert read_record(path) is None


def test_a_changed_number_is_seen(tmp_path):
    result, path = tmp_path / "table.csv", tmp_path / "record.json"
    result.write_text("1,2\n")
    write_record(path, MADE, [result])
    record = read_record(path)
    digests = Digests(tmp_path / "digests.json")
    assert changed_files(record, [result], digests) == []
    digests.save()
    result.write_text("1,3\n")
    assert changed_files(record, [result], Digests(tmp_path / "digests.json")) == [result]


def test_digests_are_taken_again_only_where_size_or_time_changed(tmp_path, monkeypatch):
    result = tmp_path / "table.csv"
    result.write_text("1,2\n")
    digests = Digests(tmp_path / "digests.json")
    first = digests.of(result)
    digests.save()
    monkeypatch.setattr("relu_sparsity.provenance.sha256", lambda path: "taken again")
    again = Digests(tmp_path / "digests.json")
    assert again.of(result) == first
    os.utime(result, (1, 1))
    assert again.of(result) == "taken again"


def test_every_difference_is_named():
    now = Fingerprint(
        {"model": {"mlp_dim": 128}, "seed": 0, "mask": {"step": 3}},
        {"model.py": "aa", "sparsity.py": "dd"},
        {"jax": "1.1"},
        {"train/baseline/seed0": "ee"},
    )
    assert differences(MADE.as_json(), MADE) == []
    assert differences(MADE.as_json(), now) == [
        "mask.step: not there -> 3",
        "model.mlp_dim: 256 -> 128",
        'the package jax: "1.0" -> "1.1"',
        "the code changed: sparsity.py",
        "made from other results: train/baseline/seed0",
    ]

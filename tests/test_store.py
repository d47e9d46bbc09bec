"""The store's lock and what counts as finished."""

import json
import subprocess
import sys

import pytest

from relu_sparsity.errors import UserError
from relu_sparsity.files import sha256
from relu_sparsity.layout import RUN_FILES
from relu_sparsity.provenance import read_record
from relu_sparsity.store import RunStore


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "store", "smoke", "baseline", 0, "abc")


def test_a_second_trainer_is_refused_and_told_by_whom(store):
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path; from relu_sparsity.store import RunStore\n"
            "with RunStore(Path(sys.argv[1]), 'smoke', 'baseline', 0, 'abc').lock():\n"
            "    print('locked', flush=True); sys.stdin.read()",
            str(store.folder.parents[4]),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    try:
        message = rf"baseline seed 0 is being trained by another process \(process {holder.pid} on"
        with pytest.raises(UserError, match=message), store.lock(patience=0.3):
            pytest.fail("two trainers at once")
    finally:
        holder.kill()
        holder.wait()
    # A killed trainer leaves no lock behind.
    with store.lock(patience=5):
        pass


def write_run(folder):
    folder.mkdir(parents=True)
    names = [name for name in RUN_FILES if name != "run.json"]
    for name in names:
        (folder / name).write_text(name)
    digests = {name: sha256(folder / name) for name in names}
    (folder / "run.json").write_text(
        json.dumps({"fingerprint": "abc", "made_from": {}, "sha256": digests})
    )


def test_exports_every_file_and_only_what_is_finished(store, tmp_path):
    assert not store.is_finished()
    write_run(store.finished)
    assert store.is_finished()
    target = tmp_path / "results"
    store.export(target)
    assert sorted(path.name for path in target.iterdir()) == sorted(RUN_FILES)
    record = read_record(target / "run.json")
    assert record is not None
    assert record.fingerprint == "abc"


def test_adopts_a_whole_run_and_no_other(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write_run(elsewhere)
    (elsewhere / "unit_use.csv").write_text("cut")
    with pytest.raises(UserError, match=r"unit_use.csv: is missing, or not the file"):
        store.adopt(elsewhere)
    assert not store.is_finished()
    (elsewhere / "unit_use.csv").write_text("unit_use.csv")
    store.adopt(elsewhere)
    assert store.is_finished()
    store.adopt(elsewhere)  # It has the run: nothing to do.
    assert [path.name for path in store.folder.iterdir()] == ["finished"]


def test_a_damaged_store_exports_nothing_of_it(store, tmp_path):
    write_run(store.finished)
    (store.finished / "units.npz").write_text("other")
    with pytest.raises(UserError, match=r"units.npz: was changed after it was written"):
        store.export(tmp_path / "results")
    assert not (tmp_path / "results" / "run.json").exists()

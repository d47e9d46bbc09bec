"""The store's lock and what counts as finished."""

import errno
import json
import subprocess
import sys
import time
from pathlib import Path

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


def test_what_is_half_there_is_not_finished(store):
    """In a bucket one file comes after the other, and run.json comes last."""
    write_run(store.finished)
    (store.finished / "run.json").unlink()
    assert not store.is_finished()


def test_the_newest_checkpoint_is_of_the_highest_step(store):
    assert store.last_checkpoint() is None
    for name in ("8", "16", "9", "24.orbax-checkpoint-tmp"):
        (store.checkpoints / name).mkdir(parents=True)
    assert store.last_checkpoint() == 16


def test_adopts_a_whole_run_and_no_other(store, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    write_run(elsewhere)
    (elsewhere / "unit_use.csv").write_text("cut")
    with pytest.raises(UserError, match=r"unit_use.csv: is missing, or not the file"):
        store.adopt(elsewhere)
    assert not store.is_finished()
    (elsewhere / "unit_use.csv").write_text("unit_use.csv")
    assert store.adopt(elsewhere)
    assert store.is_finished()
    assert not store.adopt(elsewhere), "it has the run: nothing to do"
    assert [path.name for path in store.folder.iterdir()] == ["finished"]


def test_a_damaged_store_exports_nothing_of_it(store, tmp_path):
    write_run(store.finished)
    (store.finished / "units.npz").write_text("other")
    with pytest.raises(UserError, match=r"units.npz: was changed after it was written"):
        store.export(tmp_path / "results")
    assert not (tmp_path / "results" / "run.json").exists()


def test_a_file_system_without_locks_is_not_another_process(store, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("relu_sparsity.store.fcntl.flock", no_locks)
    began = time.monotonic()
    with (
        pytest.raises(UserError, match=r"cannot be locked \(No locks available\).*STORE"),
        store.lock(patience=60),
    ):
        pass
    assert time.monotonic() - began < 30, "there is nothing to wait for"


@pytest.mark.parametrize("content", ["", "[]", '{"run": "baseline"}'])
def test_a_damaged_description_says_which_folder_to_delete(store, tmp_path, content):
    """As a power cut leaves it."""
    write_run(store.finished)
    (store.finished / "run.json").write_text(content)
    with pytest.raises(UserError, match=rf"run.json: is damaged .*; delete {store.finished}"):
        store.export(tmp_path / "results")


def test_an_export_that_cannot_be_put_in_place_is_kept(store, tmp_path, monkeypatch):
    folder = tmp_path / "exported"
    folder.mkdir()
    for name in RUN_FILES:
        (folder / name).write_text(name)

    def no_space(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", no_space)
        with pytest.raises(OSError, match="No space left"):
            store.finish(folder)
    (kept,) = Path(store.folder).glob("finished.*.partial")
    assert {path.name for path in kept.iterdir()} == set(RUN_FILES)
    store.finish(folder)
    assert store.is_finished()
    store.finish(folder)
    assert not list(Path(store.folder).glob("*.partial")), "another was faster: it is the same"

"""The store's lock and what counts as finished."""

import json
import subprocess
import sys

import pytest

from relu_sparsity.errors import UserError
from relu_sparsity.layout import RUN_FILES
from relu_sparsity.provenance import signature
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


def write_run(folder, fingerprint="abc"):
    folder.mkdir(parents=True)
    for name in RUN_FILES:
        (folder / name).write_text(json.dumps({"fingerprint": fingerprint}))


def test_exports_every_file_and_only_what_is_finished(store, tmp_path):
    assert not store.is_finished()
    write_run(store.finished)
    assert store.is_finished()
    target = tmp_path / "results"
    store.export(target)
    assert sorted(path.name for path in target.iterdir()) == sorted(RUN_FILES)
    assert signature(target / "run.json") == "abc"

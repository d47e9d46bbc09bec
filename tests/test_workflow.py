"""What the Snakefile leaves to Python, without Snakemake."""

import subprocess
import sys

import pytest

from relu_sparsity.workflow import hold_workflow_lock, is_dry_run


@pytest.mark.parametrize(
    ("arguments", "is_dry"),
    [
        (["-n"], True),
        (["--dry-run"], True),
        (["--dryrun"], True),
        (["--cores", "2", "-Fn", "report"], True),
        (["-npF"], True),
        (["--cores", "2"], False),
        (["--nolock"], False),
        (["--configfile", "n", "-F"], False),
    ],
)
def test_a_dry_run_is_known_by_its_arguments(arguments, is_dry):
    assert is_dry_run(arguments) == is_dry


def test_locks_of_a_killed_snakemake_are_removed_and_those_of_one_at_work_are_not(tmp_path):
    folder = tmp_path / ".snakemake"
    lock = folder / "locks" / "0.input.lock"
    other = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys; from pathlib import Path\n"
            "from relu_sparsity.workflow import hold_workflow_lock\n"
            "held = hold_workflow_lock(Path(sys.argv[1])); print('held', flush=True)\n"
            "sys.stdin.read()",
            str(folder),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "held\n"
        lock.parent.mkdir()
        lock.touch()
        hold_workflow_lock(folder).close()
        assert lock.exists(), "its Snakemake is at work"
    finally:
        other.kill()
        other.wait()
    hold_workflow_lock(folder).close()
    assert not lock.exists()

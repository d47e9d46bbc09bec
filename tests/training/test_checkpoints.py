"""All processes of a run restore the same checkpoint, whichever of them cannot read."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from relu_sparsity.errors import UserError
from relu_sparsity.training import checkpoints
from relu_sparsity.training.checkpoints import Checkpoint, Checkpoints, DamagedError

NUM_HOSTS = 4


CASES = {
    "one that is not asked cannot read": {"failing": 2},
    "the leader reads again": {"failing": 0, "times": 2},
    "the newest is damaged": {"damage": True},
    "the store does not answer": {"failing": 0},
}


class Restored:
    """What each of four real processes restores, case by case."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        program = Path(__file__).with_name("restoring_host.py")
        # One device each, whatever this process simulates.
        environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        hosts = [
            subprocess.Popen(
                [
                    sys.executable, program, folder,
                    *("--coordinator", f"127.0.0.1:{port}", "--process", str(index)),
                    *("--num-processes", str(NUM_HOSTS)), "--cases", json.dumps(CASES),
                ],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            )
            for index in range(NUM_HOSTS)
        ]  # fmt: skip
        outputs = [host.communicate(timeout=300) for host in hosts]
        assert all(host.returncode == 0 for host in hosts), outputs
        self._hosts = [json.loads(output.splitlines()[-1]) for output, _ in outputs]

    def told(self, case: str) -> list[dict]:
        return [host[case] for host in self._hosts]

    def kept(self, case: str) -> set[str]:
        return {path.name for path in (self._folder / case / "checkpoints").iterdir()}

    def is_damaged(self, case: str) -> bool:
        return (self._folder / case / "damaged").exists()


@pytest.fixture(scope="module")
def restored(tmp_path_factory):
    return Restored(tmp_path_factory.mktemp("restored"))


@pytest.mark.parametrize(
    ("case", "step"),
    [
        ("one that is not asked cannot read", 8),
        ("the leader reads again", 8),
        ("the newest is damaged", 4),
    ],
)
def test_all_processes_restore_the_same_step(restored, case, step):
    told = restored.told(case)
    assert [each.get("step") for each in told] == [step] * NUM_HOSTS
    assert all(each["same"] for each in told), "and its parameters, bit for bit"
    assert all(each["data"] == {"at": step} for each in told)
    assert all(each["history"] == list(range(step)) for each in told)
    assert restored.is_damaged(case) == (step == 4)


def test_a_store_that_does_not_answer_is_no_damage(restored):
    told = restored.told("the store does not answer")
    assert [each.get("error") for each in told] == ["TryAgain"] * NUM_HOSTS
    assert all("8: the store does not answer (OSError: [Errno 5]" in each["message"]
               for each in told)  # fmt: skip
    assert not restored.is_damaged("the store does not answer")
    assert restored.kept("the store does not answer") >= {"4", "8"}


@pytest.mark.parametrize("part", ["state", "history"])
def test_other_numbers_than_were_saved_are_damage(tmp_path, monkeypatch, part):
    """Whole files with a wrong number in them: only the digest tells."""
    saved = Checkpoint(4, {"kernel": jnp.ones(3)}, {"at": 4}, {"loss": np.arange(4.0)})
    changed = saved._replace(**{part: jax.tree.map(lambda leaf: leaf + 1, getattr(saved, part))})
    stored = Checkpoints(tmp_path / "checkpoints")
    digest = checkpoints._content(saved)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_content", lambda checkpoint: digest)
        stored.save(changed)
    with pytest.raises(DamagedError, match="its SHA-256 is not that of what was saved") as raised:
        stored.restore(4, saved.state)
    # Where nothing older is there, as of a branch, this is what a user gets to see.
    assert str(raised.value).startswith(f"{tmp_path / 'checkpoints' / '4'}: cannot be read (its")
    assert str(raised.value).endswith("); delete it, and it is made again")
    assert isinstance(raised.value, UserError)
    stored.close()


def test_a_run_that_goes_on_with_other_threads_is_told(tmp_path, monkeypatch, caplog):
    saved = Checkpoint(4, {"kernel": jnp.ones(3)}, {"at": 4}, {"loss": np.arange(4.0)})
    stored = Checkpoints(tmp_path / "checkpoints")
    monkeypatch.setenv("NPROC", "2")
    stored.save(saved)
    assert stored.restore_latest(saved.state).device == "cpu with 2 threads"
    assert not caplog.messages
    monkeypatch.setenv("NPROC", "1")
    stored.restore_latest(saved.state)
    assert caplog.messages == [
        "the checkpoint at step 4 was trained on cpu with 2 threads, and goes on on cpu with 1 "
        "thread: the last bits will not be those of a run without a stop"
    ]
    stored.close()

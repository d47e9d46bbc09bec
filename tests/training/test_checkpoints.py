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

from relu_sparsity.training import checkpoints
from relu_sparsity.training.checkpoints import Checkpoint, Checkpoints, DamagedError

NUM_HOSTS = 4


def restore(folder: Path, *arguments: str) -> list[dict]:
    """What each of four real processes restores."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(__file__).with_name("restoring_host.py")
    # One device each, whatever this process simulates.
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    hosts = [
        subprocess.Popen(
            [
                sys.executable, program, folder / "checkpoints",
                *("--coordinator", f"127.0.0.1:{port}", "--process", str(index)),
                *("--num-processes", str(NUM_HOSTS)), *arguments,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for index in range(NUM_HOSTS)
    ]  # fmt: skip
    outputs = [host.communicate(timeout=300) for host in hosts]
    assert all(host.returncode == 0 for host in hosts), outputs
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


@pytest.mark.parametrize(
    ("arguments", "step"),
    [
        (("--failing", "2"), 8),
        (("--failing", "0", "--times", "2"), 8),
        (("--damage",), 4),
    ],
    ids=["one that is not asked cannot read", "the leader reads again", "the newest is damaged"],
)
def test_all_processes_restore_the_same_step(tmp_path, arguments, step):
    told = restore(tmp_path, *arguments)
    assert [each.get("step") for each in told] == [step] * NUM_HOSTS
    assert all(each["same"] for each in told), "and its parameters, bit for bit"
    assert all(each["data"] == {"at": step} for each in told)
    assert all(each["history"] == list(range(step)) for each in told)
    assert (tmp_path / "damaged").exists() == (step == 4)


def test_a_store_that_does_not_answer_is_no_damage(tmp_path):
    told = restore(tmp_path, "--failing", "0")
    assert [each.get("error") for each in told] == ["TryAgain"] * NUM_HOSTS
    assert all("8: the store does not answer (OSError: [Errno 5]" in each["message"]
               for each in told)  # fmt: skip
    assert not (tmp_path / "damaged").exists()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} >= {"4", "8"}


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
    with pytest.raises(DamagedError, match="its SHA-256 is not that of what was saved"):
        stored.restore(4, saved.state)
    stored.close()

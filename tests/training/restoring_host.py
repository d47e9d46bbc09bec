"""One of several processes that save checkpoints and restore the newest: a program of its own.

What it does and how that ends is printed as JSON, case by case. A process may fail to read a few
times.
"""

import argparse
import json
import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from relu_sparsity import distributed
from relu_sparsity.errors import UserError
from relu_sparsity.params import RunConfig
from relu_sparsity.training import checkpoints as module
from relu_sparsity.training.step import make_mesh, make_steps

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("--coordinator")
parser.add_argument("--process", type=int)
parser.add_argument("--num-processes", type=int)
parser.add_argument(
    "--cases",
    type=json.loads,
    help="by name, as JSON. failing: the process that fails to read; times: how often; "
    "damage: whether the newest checkpoint is damaged",
)
arguments = parser.parse_args()
logging.basicConfig(level=logging.INFO, format="%(message)s")
distributed.initialize(
    arguments.coordinator,
    arguments.num_processes,
    arguments.process,
    heartbeat_timeout_seconds=20,
)
config = RunConfig.model_validate(
    {
        "model": {"num_layers": 2, "emb_dim": 8, "num_heads": 2, "mlp_dim": 16},
        "training": {"seq_len": 8, "per_device_batch_size": 4, "global_batch_size": 4},
    }
)
steps = make_steps(config, vocab_size=300, mesh=make_mesh())
read = ocp.StandardCheckpointHandler.restore
module._PAUSES = (0.1, 0.1)


def save(folder, damage):
    checkpoints = module.Checkpoints(folder)
    for step in (4, 8):
        state = steps.init(step)
        checkpoints.save(module.Checkpoint(step, state, {"at": step}, {"steps": np.arange(step)}))
    checkpoints.close()
    distributed.barrier(f"saved {folder}")
    if damage and distributed.is_leader():
        (largest, *_) = sorted(
            (path for path in (folder / "8").rglob("*") if path.is_file()),
            key=lambda path: -path.stat().st_size,
        )
        largest.write_bytes(largest.read_bytes()[:10])
    distributed.barrier(f"damaged {folder}")


def restore(folder, failing, times):
    failures = 0

    def fail_to_read(self, *args, **kwargs):
        """What a host sees whose network is gone."""
        nonlocal failures
        if arguments.process == failing and failures < times:
            failures += 1
            raise OSError(5, "Input/output error")
        return read(self, *args, **kwargs)

    ocp.StandardCheckpointHandler.restore = fail_to_read
    checkpoints = module.Checkpoints(folder)
    try:
        restored = checkpoints.restore_latest(steps.state)
    except UserError as error:
        return {"error": type(error).__name__, "message": str(error)}
    finally:
        ocp.StandardCheckpointHandler.restore = read
    # Not by the module's own digest: the parameters themselves.
    leaves = jax.tree.leaves(jax.device_get(restored.state))
    expected = jax.tree.leaves(jax.device_get(steps.init(restored.step)))
    return {
        "step": restored.step,
        "data": restored.data_state,
        "history": restored.history["steps"].tolist(),
        "same": all(map(np.array_equal, leaves, expected)),
    }


told = {}
for name, case in arguments.cases.items():
    folder = arguments.folder / name / "checkpoints"
    save(folder, case.get("damage", False))
    told[name] = restore(folder, case.get("failing"), case.get("times", 10**6))
print(json.dumps(told), flush=True)

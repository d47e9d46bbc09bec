"""A project on slices of a stand-in for Cloud TPU, and what one process makes of it."""

import json
import sys
import time

import pandas as pd
import yaml
from projects import TINY, simulated

LAUNCH = ("relu_sparsity.cli", "tpu", "run", "train", "--run", "baseline")


def make_tpu_scale_tiny(project):
    training = TINY["training"] | {
        "num_steps": 60,
        "global_batch_size": 8,
        "log_every_steps": 4,
        "checkpoint_every_steps": 10,
        "eval_every_steps": 20,
    }
    tiny = TINY | {"training": training, "model": TINY["model"] | {"num_layers": 2}}
    project.edit(lambda document: document.update(scale="tpu"))
    project.edit(lambda document: document["scales"].update(tpu=tiny))
    slices = project.folder / "workflow/profiles/tpu/slices.yaml"
    settings = yaml.safe_load(slices.read_text()) | {
        "accelerator_type": "v2-16",  # Two hosts: each takes as long as a training of its own.
        "python": sys.executable,
        "poll_seconds": 1,
        "host_timeout_seconds": 90,
        "stop_seconds": 60,
        "price_per_chip_hour": 1.5,
    }
    slices.write_text(yaml.safe_dump(settings))
    for command in ("tokenizer", "data"):
        project.run("relu_sparsity.cli", command)


def train_in_one_process(project):
    for run in ("baseline", "masked"):
        for command in ("mask", "train") if run == "masked" else ("train",):
            project.run("relu_sparsity.cli", command, "--run", run, XLA_FLAGS=simulated(4))


class Controller:
    """A project with a bucket and a cloud."""

    def __init__(self, project, bucket, cloud):
        self.project, self.bucket, self.cloud = project, bucket, cloud
        self.prefix = f"{project.folder.parent.name}/store"
        self.variables = {
            **bucket.environment,
            **cloud.environment(project.environment["PATH"]),
            "RELU_SPARSITY_STORE": f"gs://{bucket.bucket}/{self.prefix}",
        }

    def start(self, *command):
        self.started = self.project.start(*command, **self.variables)
        return self.started

    def run(self, *command, status=0):
        return self.project.run(*command, status=status, **self.variables)

    def settings(self, **changes):
        path = self.project.folder / "workflow/profiles/tpu/slices.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))

    def progress(self, run="baseline"):
        names = self.bucket.names(f"{self.prefix}/runs/tpu/{run}/")
        found = [name for name in names if name.endswith("/progress.json")]
        return json.loads(self.bucket.read(found[0])) if found else {}

    def wait_for(self, what, patience=400):
        deadline = time.monotonic() + patience
        while not (found := what()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.1)
        return found

    def wait_for_step(self, step):
        """Waits until the command that was started last has trained so far."""

        def trained():
            ended = self.started.poll() is not None
            found = self.progress().get("step", 0) >= step
            assert found or not ended, self.started.communicate()[0]
            return found

        return self.wait_for(trained)

    def status(self, run="baseline"):
        told = json.loads(self.run("relu_sparsity.cli", "status", "--json"))
        return next(each for each in told["runs"] if each["run"] == run)


def tables(project, run="baseline"):
    folder = project.folder / f"results/tpu/runs/{run}/seed0"
    return {
        name: pd.read_csv(folder / f"{name}.csv") for name in ("unit_use", "training", "evaluation")
    }


def assert_same(found, expected):
    """The order of the data and all counts are the same; sums of floats but for rounding."""
    pd.testing.assert_frame_equal(found["unit_use"], expected["unit_use"], check_exact=True)
    for name in ("training", "evaluation"):
        pd.testing.assert_frame_equal(found[name], expected[name], rtol=1e-5, atol=1e-7)

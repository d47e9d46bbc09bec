"""A real project in a temporary folder, whose runs take a second each."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from repository import PARAMS, ROOT

TINY = {
    "data": {"packages": ["optax"], "heldout_fraction": 0.2},
    "tokenizer": {"vocab_size": 400, "train_documents": 200},
    "model": {"emb_dim": 8, "num_heads": 2, "mlp_dim": 32},
    "optimizer": {"warmup_steps": 4, "peak_lr": 0.02},
    "training": {
        "num_steps": 24,
        "seq_len": 16,
        "per_device_batch_size": 4,
        "global_batch_size": 4,
        "eval_every_steps": 8,
        "eval_sequences": 8,
        "checkpoint_every_steps": 5,
        "log_every_steps": 6,
    },
    "metrics": {"metrics_every_steps": 2, "convergence_window": 8, "early_steps": 12},
    "mask": {"step": 12},
}


def copy_checkout(folder: Path) -> "Project":
    """Copies what a clone of this checkout would hold, with what is not committed yet.

    The parameters are those that ship, and DVC has recorded nothing: a user's are not of the tests.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    shutil.copy2(PARAMS, folder / "params.yaml")
    (folder / "dvc.lock").unlink(missing_ok=True)
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    return Project(folder)


def simulated(devices: int) -> str:
    """The XLA flag that makes one CPU look like several devices."""
    return f"--xla_force_host_platform_device_count={devices}"


@dataclass(frozen=True)
class Project:
    """A checkout of this repository with its own results, store and parameters."""

    folder: Path

    @property
    def results(self) -> Path:
        return self.folder / "results" / "smoke"

    @property
    def environment(self) -> dict[str, str]:
        own = {"PYTHONPATH": str(self.folder / "src"), "RELU_SPARSITY_STORE": "store"}
        # As in a shell where nothing is activated: what DVC calls finds .venv by itself.
        others = [
            folder
            for folder in os.environ["PATH"].split(os.pathsep)
            if not (Path(folder) / "snakemake").exists()
        ]
        own["PATH"] = os.pathsep.join(others)
        # These programs take longer to compile than to run.
        own["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        return inherited | own

    def start(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def start_hosts(
        self, count: int, *command: str, devices: int = 1, **environment: str
    ) -> list[subprocess.Popen[str]]:
        """Starts one process for each host of a job that trains on `devices` devices per host."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        return [
            self.start(
                "relu_sparsity.cli",
                *command,
                *("--coordinator-address", f"127.0.0.1:{port}", "--num-processes", str(count)),
                *("--process-id", str(index), "--heartbeat-timeout", "20"),
                XLA_FLAGS=simulated(devices),
                **environment,
            )
            for index in range(count)
        ]

    def progress(self, run: str = "baseline", store: str = "store") -> dict[str, Any]:
        """How far a run's training is; no keys before it has begun."""
        found = list((self.folder / store / "runs/smoke" / run).glob("*/*/progress.json"))
        return json.loads(found[0].read_text()) if found else {}

    def wait_for_step(self, step: int, run: str = "baseline", store: str = "store") -> None:
        deadline = time.monotonic() + 400
        while self.progress(run, store).get("step", 0) < step:
            assert time.monotonic() < deadline, f"{run} did not get to step {step}"
            time.sleep(0.1)

    def run(self, *command: str, status: int | None = 0, **environment: str) -> str:
        process = self.start(*command, **environment)
        output, _ = process.communicate(timeout=600)
        assert status is None or process.returncode == status, output
        return output

    def snakemake(self, *arguments: str, status: int | None = 0) -> str:
        return self.run("snakemake", "--cores", "2", *arguments, status=status)

    def planned(self, *arguments: str) -> dict[str, int]:
        """How many jobs of each rule Snakemake would run."""
        output = self.snakemake("-n", *arguments)
        table = output.partition("Job stats:\n")[2].partition("\n\n")[0]
        rows = [line.split() for line in table.splitlines()[2:]]
        return {rule: int(count) for rule, count in rows if rule != "total"}

    def trained(self, *arguments: str) -> set[str]:
        """The runs that Snakemake would train."""
        output = self.snakemake("-n", *arguments)
        return set(re.findall(r"^Job \d+: train (\w+), seed \d+$", output, re.MULTILINE))

    def edit(self, change: Callable[[dict[str, Any]], Any]) -> None:
        path = self.folder / "params.yaml"
        document = yaml.safe_load(path.read_text())
        change(document)
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    def copy(self, folder: Path) -> "Project":
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)

    def result_bytes(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.results)): path.read_bytes()
            for path in self.results.rglob("*")
            if path.is_file() and ".snakemake" not in path.name
        }

"""A real project in a temporary folder, whose runs take a second each."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
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
    "pruning": {"show_speed": False},
}


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
        inherited = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
        return inherited | own

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *command: str, status: int | None = 0) -> str:
        process = self.start(*command)
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


@pytest.fixture(scope="session")
def fresh(tmp_path_factory):
    """What a clone holds, with parameters that train in a second."""
    folder = tmp_path_factory.mktemp("project") / "fresh"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix, target_is_directory=True)
    project = Project(folder)
    project.edit(lambda document: document["scales"].update(smoke=TINY))
    return project


@pytest.fixture(scope="session")
def finished(fresh, tmp_path_factory):
    """The same after `snakemake`: read it, copy it, do not change it."""
    project = fresh.copy(tmp_path_factory.mktemp("finished") / "project")
    project.snakemake()
    return project


@pytest.fixture
def project(finished, tmp_path):
    """A finished project to change."""
    return finished.copy(tmp_path / "project")

"""Times whole training jobs: where the time of one goes, and two of them side by side.

    python bench/jobs.py                     # a few minutes

The jobs are those of the smoke scale, started as the workflow starts them, in a folder of their
own. Two side by side, with a thread each, are compared with one alone: one that has a core, and one
that has the whole machine, whose batches and bookkeeping then run beside its steps. The same for
programs that only multiply matrices tells how much of it is the machine's doing.
"""

import argparse
import atexit
import contextlib
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relu_sparsity.files import write_json, write_text
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params
from relu_sparsity.params_file import load_params
from relu_sparsity.processes import use_huge_pages

RESULTS = Path("results/bench")
# Two runs of one shape, so that the second finds what the first compiled.
FIRST, SECOND = "lr_x1of3", "lr_x2of3"
# What JAX calls the parts of compiling.
COMPILING = {
    "jaxpr_trace_duration": "tracing",
    "jaxpr_to_mlir_module_duration": "lowering",
    "backend_compile_duration": "compiling",
}
MULTIPLICATIONS = 150


@dataclass
class Job:
    """A training job in a process of its own."""

    run: str
    times: Path
    started: float
    process: "subprocess.Popen[bytes]"


class Bench:
    """A folder with the data that the jobs need."""

    def __init__(self, folder: Path) -> None:
        use_huge_pages()
        shutil.copy("params.yaml", folder)
        self._folder = folder.resolve()
        self._params: Params = load_params(scale="smoke")
        for command in ("tokenizer", "data"):
            self._start("relu_sparsity.cli", command, "--scale", "smoke").wait()

    def train(
        self, *runs: str, threads: int | None = None, one_core: bool = False
    ) -> list[dict[str, float]]:
        """Trains runs from nothing, side by side; whatever was compiled before stays compiled.

        Args:
          runs: The runs.
          threads: The threads of each; None takes all.
          one_core: Let the operating system run all of it on one core.

        Returns:
          For each run, where its time went, in seconds.
        """
        with _one_core() if one_core else contextlib.nullcontext():
            started = [self._begin(run, threads) for run in runs]
        return [self._end(job) for job in started]

    def seconds(self, *runs: str, one_core: bool = False) -> float:
        """Seconds until runs, side by side with a thread each, are all trained."""
        return max(job["whole"] for job in self.train(*runs, threads=1, one_core=one_core))

    def multiply(self, count: int) -> float:
        """Seconds that programs which only multiply matrices take side by side, a thread each."""
        start = time.perf_counter()
        with _one_core() if count == 1 else contextlib.nullcontext():
            processes = [self._start(__file__, "--multiply", NPROC="1") for _ in range(count)]
        for process in processes:
            _require_success(process)
        return time.perf_counter() - start

    def _begin(self, run: str, threads: int | None) -> Job:
        for folder in (self._store(run), self._folder / Layout("smoke").run(run, 0)):
            shutil.rmtree(folder, ignore_errors=True)
        times = self._folder / f"{run}.json"
        on = [] if threads is None else ["--threads", str(threads)]
        started = time.time()
        process = self._start(__file__, "--train", run, *on, BENCH_TIMES=str(times))
        return Job(run, times, started, process)

    def _end(self, job: Job) -> dict[str, float]:
        _require_success(job.process)
        told = json.loads(job.times.read_text())
        training = self._params.run(job.run).config.training
        tokens = training.global_batch_size * training.seq_len
        (speeds,) = self._store(job.run).glob("*/*/throughput.csv")
        with speeds.open() as rows:
            # Of the first interval compiling is a part.
            speed = statistics.median(
                float(row["tokens_per_second"]) for row in csv.DictReader(rows)
            )
        steps = training.num_steps * tokens / speed
        whole = told.pop("ended") - job.started
        return {"whole": whole, "steps": steps, **told, "rest": whole - steps - sum(told.values())}

    def _store(self, run: str) -> Path:
        return self._folder / "store" / "runs" / "smoke" / run

    def _start(self, program: str, *arguments: str, **environment: str) -> Any:
        command = ["-m", program] if program == "relu_sparsity.cli" else [program]
        return subprocess.Popen(
            [sys.executable, *command, *arguments],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                # As relu-sparsity sets them; `train_and_listen` imports JAX before that.
                "JAX_COMPILATION_CACHE_DIR": str(self._folder / "store" / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            }
            | environment,
        )


def _require_success(process: "subprocess.Popen[bytes]") -> None:
    if process.wait():
        raise RuntimeError(f"{process.args!r} ended with status {process.returncode}")


@contextlib.contextmanager
def _one_core() -> Iterator[None]:
    """What is started here stays on one core, where the operating system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(all_cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


def train_and_listen(run: str, threads: int | None) -> None:
    """In a process of its own: trains, and writes how long JAX compiled and when it all ended."""
    import jax.monitoring

    seconds: dict[str, float] = defaultdict(float)

    def take(event: str, duration_secs: float, **_: Any) -> None:
        if part := COMPILING.get(event.rsplit("/", 1)[-1]):
            seconds[part] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(take)
    times = Path(os.environ["BENCH_TIMES"])
    atexit.register(lambda: write_json(times, dict(seconds) | {"ended": time.time()}))
    from relu_sparsity.cli import main

    on = [] if threads is None else ["--threads", str(threads)]
    sys.argv = ["relu-sparsity", "train", "--run", run, "--scale", "smoke", *on]
    main()


def multiply_matrices() -> None:
    """Multiplies matrices that do not fit into the caches near a core."""
    import jax
    import jax.numpy as jnp

    left = jnp.ones((1024, 1024), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    for _ in range(MULTIPLICATIONS):
        jax.block_until_ready(multiply(left, left))


def measure(rounds: int) -> dict[str, Any]:
    """Times the jobs, those side by side in turns with those alone."""
    with tempfile.TemporaryDirectory(prefix="relu-sparsity-bench-") as folder:
        bench = Bench(Path(folder))
        (first,) = bench.train(FIRST)
        (second,) = bench.train(SECOND)
        bench.train(FIRST, threads=1)
        times: dict[str, list[float]] = defaultdict(list)
        for _ in range(rounds):
            times["alone, on one core"].append(bench.seconds(FIRST, one_core=True))
            times["alone, one thread"].append(bench.seconds(FIRST))
            times["two side by side"].append(bench.seconds(FIRST, SECOND))
            times["matrix products alone, on one core"].append(bench.multiply(1))
            times["matrix products, two side by side"].append(bench.multiply(2))
    best = {name: min(seconds) for name, seconds in times.items()}
    pair = best["two side by side"]
    return {
        "seconds": {"first job": first, "second job of the shape": second},
        "side_by_side_seconds": times,
        "ratios": {
            "two jobs / one alone on one core": pair / best["alone, on one core"],
            "two jobs / one alone with one thread": pair / best["alone, one thread"],
            "only matrix products: two / one on one core": best["matrix products, two side by side"]
            / best["matrix products alone, on one core"],
        },
    }


def as_markdown(measured: dict[str, Any]) -> str:
    """Two tables: the parts of a job, and two side by side."""
    jobs = measured["seconds"]
    first = next(iter(jobs.values()))
    lines = [
        "Whole training jobs of the smoke scale, in seconds.",
        "",
        "| | " + " | ".join(jobs) + " |",
        "|:--|" + "--:|" * len(jobs),
        *(
            f"| {part} | " + " | ".join(f"{job[part]:.2f}" for job in jobs.values()) + " |"
            for part in first
        ),
        "",
        "'compiling' is reading where an earlier job of the shape has compiled. 'rest' is what is "
        "neither steps nor compiling: start-up, evaluations, checkpoints, the end.",
        "",
        "| side by side | |",
        "|:--|--:|",
        *(f"| {name} | {ratio:.2f} |" for name, ratio in measured["ratios"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="of jobs side by side; default: 3")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--multiply", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.multiply:
        multiply_matrices()
    elif arguments.train:
        train_and_listen(arguments.train, arguments.threads)
    else:
        measured = measure(arguments.rounds)
        text = as_markdown(measured)
        write_json(RESULTS / "jobs.json", measured)
        write_text(RESULTS / "jobs.md", text)
        print(text)


if __name__ == "__main__":
    main()

"""Times the training step against its own matrix products, and writes a table of ratios.

    python bench/bench.py                    # shapes: smoke, mini, wide; on accelerators also gpu
    python bench/bench.py wide --rounds 30
    python bench/bench.py --growth           # step time over width and depth, as a figure

Everything of a shape is timed in one process, in turns, so that what else the machine does falls on
all of it alike; best times are compared. Benchmark runners time one thing after the other, which on
a shared machine compares the hours of the day. The process has huge pages, as the workflow's jobs
have: GLIBC_TUNABLES=glibc.malloc.hugetlb=0 shows what a step takes without.
"""

import argparse
import atexit
import json
import logging
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from relu_sparsity.data import sources
from relu_sparsity.data.pipeline import train_batches
from relu_sparsity.data.tokenizer import load_tokenizer, train_tokenizer
from relu_sparsity.files import write_json, write_text
from relu_sparsity.flops import forward_flops_per_token
from relu_sparsity.hardware import HARDWARE
from relu_sparsity.model import masks_by_stack
from relu_sparsity.params import DataParams, RunConfig
from relu_sparsity.params_file import load_params
from relu_sparsity.processes import use_huge_pages
from relu_sparsity.sparsity import PERCENTILES, unit_use
from relu_sparsity.tpu.cost import program_cost
from relu_sparsity.training.compaction import Compaction
from relu_sparsity.training.step import Steps, make_mesh, make_steps

# Those of the scales, and one between mini and gpu.
SHAPES = ("smoke", "mini", "wide", "gpu")
WIDE = {"emb_dim": 64, "mlp_dim": 2048}
# What takes seconds a step on a CPU is not timed there unless asked for.
FOR_CPU = ("smoke", "mini", "wide")
GROWTH_WIDTHS = (1024, 2048, 4096, 8192, 16384, 32768)
GROWTH_DEPTHS = (2, 6, 10, 14)
RESULTS = Path("results/bench")


@dataclass
class Timed:
    """Something to time: `run` starts it and returns what to wait for."""

    run: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)

    def once(self) -> None:
        """Runs it once and keeps the time."""
        start = time.perf_counter()
        jax.block_until_ready(self.run())
        self.seconds.append(time.perf_counter() - start)

    @property
    def best(self) -> float:
        """The best time, in seconds."""
        return min(self.seconds)


def in_turns(timed: Sequence[Timed], rounds: int) -> None:
    """Times each thing once per round, after two rounds that compile and warm up."""
    for each in timed:
        jax.block_until_ready(each.run())
        jax.block_until_ready(each.run())
    for turn in range(rounds):
        for each in timed if turn % 2 else reversed(timed):
            each.once()


def config_of(shape: str, **model: Any) -> RunConfig:
    """The parameters of a shape, with other values of `model` where they are given."""
    if shape == "wide":
        shape, model = "mini", WIDE | model
    config = load_params(scale=shape).defaults
    return config.model_copy(update={"model": config.model.model_copy(update=model)})


def steps_of(config: RunConfig) -> Steps:
    """The compiled steps of a shape on one device."""
    vocab_size = config.tokenizer.vocab_size
    return make_steps(config, vocab_size=vocab_size, mesh=make_mesh(1))


def tokens_of(config: RunConfig) -> jax.Array:
    """Tokens with the frequencies of text: few are common."""
    generator = np.random.default_rng(0)
    shape = (config.training.global_batch_size, config.training.seq_len + 1)
    return jnp.asarray(generator.zipf(1.3, shape) % config.tokenizer.vocab_size, jnp.int32)


def stepper(step: Any, state: Any, tokens: jax.Array, kept: Any = None) -> Timed:
    """Times a training step; each call goes on from the last state."""
    holder = [state]

    def run() -> Any:
        holder[0], output = step(holder[0], tokens, jnp.float32(1e-3), kept)
        return output

    return Timed(run)


def matrix_products(config: RunConfig) -> dict[tuple[int, int, int, int], int]:
    """How often a training step multiplies (batch, m, k) with (batch, k, n), by shape."""
    emb_dim, heads = config.model.emb_dim, config.model.num_heads
    mlp_dim = config.model.mlp_dims[0]
    seq_len, layers = config.training.seq_len, config.model.num_layers
    batch = config.training.global_batch_size
    rows = batch * seq_len
    products: dict[tuple[int, int, int, int], int] = {}

    def add(count: int, *shape: int) -> None:
        key = (shape[0], shape[1], shape[2], shape[3])
        products[key] = products.get(key, 0) + count

    for count, inner, outer in (
        (layers, emb_dim, 3 * emb_dim),
        (layers, emb_dim, emb_dim),
        (layers, emb_dim, mlp_dim),
        (layers, mlp_dim, emb_dim),
        (1, emb_dim, config.tokenizer.vocab_size),
    ):
        add(count, 1, rows, inner, outer)
        add(count, 1, rows, outer, inner)
        add(count, 1, inner, rows, outer)
    add(2 * layers, batch * heads, seq_len, emb_dim // heads, seq_len)
    add(4 * layers, batch * heads, seq_len, seq_len, emb_dim // heads)
    return products


def floor_of(config: RunConfig) -> list[tuple[Timed, int]]:
    """Each matrix product of a step alone, and how often the step does it."""
    generator = np.random.default_rng(0)
    multiply = jax.jit(jnp.matmul)
    floor = []
    for (batch, m, k, n), count in matrix_products(config).items():
        left, right = (
            jnp.asarray(generator.standard_normal(shape).squeeze(), config.model.dtype)
            for shape in ((batch, m, k), (batch, k, n))
        )
        floor.append((Timed(partial(multiply, left, right)), count))
    return floor


def pseudocode() -> dict[str, Any]:
    """The metrics as the paper writes them down: a function each, of the activations (A.6).

    A function of one sequence is mapped over the batch. Where A.6 sums activations, its text counts
    tokens: so does this.
    """

    def percentile_use(q: int) -> Any:
        def of_sequence(sequence: jax.Array) -> jax.Array:
            counts = jnp.sum(sequence > 0, axis=0)
            used = jnp.sum(counts > 0) / counts.shape[0]
            return jnp.percentile(counts, q * used + 100 * (1 - used)) / sequence.shape[0]

        return lambda batch: jax.vmap(of_sequence)(batch).mean()

    def units_used(sequence: jax.Array) -> jax.Array:
        return jnp.sum((jnp.sum(sequence, axis=0) > 0).astype(jnp.int32))

    functions = {
        "token_use": lambda batch: jnp.mean(batch > 0),
        "sequence_use": lambda batch: jax.vmap(units_used)(batch).mean() / batch.shape[-1],
        "batch_use": lambda batch: units_used(batch.reshape(-1, batch.shape[-1])) / batch.shape[-1],
        **{f"p{q}": percentile_use(q) for q in PERCENTILES},
    }
    return {name: jax.jit(function) for name, function in functions.items()}


def time_shape(name: str, rounds: int) -> dict[str, Any]:
    """Times everything of one shape.

    Returns:
      Milliseconds and ratios, by name.
    """
    config = config_of(name)
    whole = config.model.mlp_dims
    steps, tokens = steps_of(config), tokens_of(config)
    compile_seconds, compiled = {}, {}
    for kind in ("train", "train_and_measure"):
        lowered = getattr(steps, kind).lower(steps.state, tokens, jnp.float32(0), None)
        start = time.perf_counter()
        compiled[kind] = lowered.compile()
        compile_seconds[kind] = time.perf_counter() - start

    generator = np.random.default_rng(0)
    kept = [generator.random(width) < 0.5 for width in whole]
    masks = masks_by_stack(kept, whole)
    part = Compaction(kept, multiple_of=max(1, whole[0] // 16))
    compact = steps_of(config.with_mlp_dims(part.mlp_dims))
    left = part.kept_units()
    activations = jnp.maximum(
        jnp.asarray(
            generator.standard_normal((tokens.shape[0], config.training.seq_len, whole[0])),
            config.model.dtype,
        ),
        0,
    )
    ours, papers = jax.jit(unit_use), pseudocode()

    def all_of_papers(activations: jax.Array) -> dict[str, jax.Array]:
        return {name: function(activations) for name, function in papers.items()}

    fused = jax.jit(all_of_papers)
    evaluated = steps.init(0).params
    logging.getLogger("absl").setLevel(logging.ERROR)
    parts = {
        "step": stepper(steps.train, steps.init(0), tokens),
        "step with metrics": stepper(steps.train_and_measure, steps.init(0), tokens),
        "forward": Timed(lambda: steps.evaluate(evaluated, tokens, None)),
        "masked step": stepper(steps.train, steps.init(0), tokens, masks),
        "compacted step": stepper(compact.train, compact.init(0), tokens, left),
        "metrics": Timed(lambda: ours(activations)),
        "metrics, A.6 as written": Timed(lambda: all_of_papers(activations)),
        "metrics, A.6 in one program": Timed(lambda: fused(activations)),
        "a batch of text": data_pipeline(config),
    }
    floor = floor_of(config)
    in_turns([*parts.values(), *(product for product, _ in floor)], rounds)
    floor_seconds = sum(count * product.best for product, count in floor)
    best = {name: each.best for name, each in parts.items()}
    flops = (
        3
        * tokens[:, 1:].size
        * forward_flops_per_token(
            emb_dim=config.model.emb_dim,
            mlp_dims=whole,
            seq_len=config.training.seq_len,
            vocab_size=config.tokenizer.vocab_size,
        )
    )
    return {
        "milliseconds": {
            "matrix products": 1000 * floor_seconds,
            **{name: 1000 * seconds for name, seconds in best.items()},
        },
        "median_milliseconds": {
            name: 1000 * statistics.median(each.seconds) for name, each in parts.items()
        },
        "compile_seconds": compile_seconds,
        "gflops_per_second": flops / best["step"] / 1e9,
        "ratios": {
            "step / matrix products": best["step"] / floor_seconds,
            "step with metrics / step": best["step with metrics"] / best["step"],
            "backward and update / forward": best["step"] / best["forward"] - 1,
            "A.6 as written / metrics": best["metrics, A.6 as written"] / best["metrics"],
            "A.6 in one program / metrics": best["metrics, A.6 in one program"] / best["metrics"],
            "masked step / compacted step, half of the units": best["masked step"]
            / best["compacted step"],
            "step / a batch of text": best["step"] / best["a batch of text"],
            **against_hardware(compiled["train"], flops, best["step"]),
        },
        "metrics_memory_ratio": max(temporaries(each, activations) for each in papers.values())
        / temporaries(ours, activations),
    }


def against_hardware(
    compiled: jax.stages.Compiled, model_flops: float, seconds: float
) -> dict[str, float]:
    """Model FLOPs, bytes and the roofline, as shares of a step's time; none for a CPU."""
    hardware = HARDWARE.get(jax.devices()[0].device_kind)
    if hardware is None:
        return {}
    cost = program_cost(compiled)
    least = {
        "bytes at full bandwidth / step": cost.hbm_bytes / hardware.bandwidth,
        "FLOPs at peak / step": cost.flops / hardware.peak_flops,
    }
    return {
        "MFU (model FLOPs at peak / step)": model_flops / hardware.peak_flops / seconds,
        **{name: each / seconds for name, each in least.items()},
        "roofline / step": max(least.values()) / seconds,
    }


def temporaries(function: Any, *arguments: Any) -> float:
    """Bytes that a compiled function allocates beside its arguments, at least one."""
    analysis = function.lower(*arguments).compile().memory_analysis()
    return max(1.0, float(analysis.temp_size_in_bytes))


def data_pipeline(config: RunConfig) -> Timed:
    """Batches of real text, tokenized and packed."""
    folder = Path(tempfile.mkdtemp(prefix="relu-sparsity-bench-"))
    # The batches are read from it until the end.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data = DataParams(packages=("networkx",))
    documents = sources.documents(data, sources.prepare(data, folder), "train")
    train_tokenizer(documents, config.tokenizer.vocab_size, folder / "tokenizer.model", 500)
    batches = train_batches(
        documents,
        load_tokenizer(folder / "tokenizer.model"),
        seq_len=config.training.seq_len,
        global_batch_size=config.training.global_batch_size,
        num_shards=1,
        seed=0,
    )
    return Timed(lambda: next(batches))


def time_growth(rounds: int) -> list[dict[str, float]]:
    """Step time and memory over width and depth, plain and with metrics."""
    rows = []
    for mlp_dim in GROWTH_WIDTHS:
        rows.append(_grown(rounds, num_layers=2, mlp_dim=mlp_dim))
    for num_layers in GROWTH_DEPTHS:
        rows.append(_grown(rounds, num_layers=num_layers, mlp_dim=GROWTH_WIDTHS[0]))
    return rows


def _grown(rounds: int, *, num_layers: int, mlp_dim: int) -> dict[str, float]:
    config = config_of("mini", num_layers=num_layers, mlp_dim=mlp_dim)
    steps = steps_of(config)
    tokens = tokens_of(config)
    plain = stepper(steps.train, steps.init(0), tokens)
    measured = stepper(steps.train_and_measure, steps.init(0), tokens)
    in_turns([plain, measured], rounds)
    analysis = (
        steps.train_and_measure.lower(steps.state, tokens, jnp.float32(0), None)  # type: ignore[attr-defined]
        .compile()
        .memory_analysis()
    )
    return {
        "mlp_dim": mlp_dim,
        "num_layers": num_layers,
        "step_ms": 1000 * plain.best,
        "measured_step_ms": 1000 * measured.best,
        "memory_mib": (analysis.temp_size_in_bytes + analysis.argument_size_in_bytes) / 2**20,
    }


def draw_growth(rows: list[dict[str, float]], path: Path) -> None:
    """Draws what `time_growth` measured."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "relu-sparsity"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    wide = [row for row in rows if row["num_layers"] == 2 and row["mlp_dim"] in GROWTH_WIDTHS]
    deep = [row for row in rows if row["mlp_dim"] == GROWTH_WIDTHS[0]]
    for axis, chosen, key, label in (
        (axes[0], wide[: len(GROWTH_WIDTHS)], "mlp_dim", "mlp_dim, 2 layers"),
        (axes[1], deep[-len(GROWTH_DEPTHS) :], "num_layers", "num_layers, mlp_dim 1024"),
    ):
        x = [row[key] for row in chosen]
        axis.plot(x, [row["step_ms"] for row in chosen], "o-", label="step (ms)")
        axis.plot(x, [row["measured_step_ms"] for row in chosen], "s--", label="with metrics (ms)")
        axis.plot(x, [row["memory_mib"] for row in chosen], "^:", label="memory (MiB)")
        axis.set_xlabel(label)
        axis.legend(frameon=False)
    axes[0].set(xscale="log", yscale="log")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def as_markdown(measured: dict[str, dict[str, Any]]) -> str:
    """The table of all shapes: ratios first, as times differ from machine to machine."""
    device = jax.devices()[0].device_kind
    lines = [
        f"Best times in one process, JAX {jax.__version__}, {device}, {os.cpu_count()} cores.",
        "",
        "| | " + " | ".join(measured) + " |",
        "|:--|" + "--:|" * len(measured),
    ]
    first = next(iter(measured.values()))
    for section, digits in (("ratios", 2), ("milliseconds", 2), ("compile_seconds", 2)):
        unit = {"milliseconds": " (ms)", "compile_seconds": ": compile (s)"}.get(section, "")
        for name in first[section]:
            cells = (f"{each[section][name]:.{digits}f}" for each in measured.values())
            lines.append(f"| {name}{unit} | " + " | ".join(cells) + " |")
    for name, title in (
        ("metrics_memory_ratio", "temporary memory, A.6 as written / metrics"),
        ("gflops_per_second", "step (model GFLOP/s)"),
    ):
        cells = (f"{each[name]:.1f}" for each in measured.values())
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Times the shapes that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "shapes", nargs="*", choices=[*SHAPES, []], help="default: all; on a CPU all but gpu"
    )
    parser.add_argument("--rounds", type=int, default=20, help="default: %(default)s")
    parser.add_argument("--growth", action="store_true", help="over width and depth instead")
    arguments = parser.parse_args()
    if arguments.growth:
        rows = time_growth(max(3, arguments.rounds // 2))
        write_json(RESULTS / "growth.json", rows)
        draw_growth(rows, RESULTS / "growth.svg")
        print(json.dumps(rows, indent=1))
        return
    shapes = arguments.shapes or (FOR_CPU if jax.default_backend() == "cpu" else SHAPES)
    measured = {name: time_shape(name, arguments.rounds) for name in shapes}
    assert all(math.isfinite(each["gflops_per_second"]) for each in measured.values())
    write_json(RESULTS / "bench.json", measured)
    write_text(RESULTS / "bench.md", as_markdown(measured))
    print(as_markdown(measured))


if __name__ == "__main__":
    if "GLIBC_TUNABLES" not in os.environ:
        use_huge_pages()
        os.execv(sys.executable, sys.orig_argv)
    main()

"""Runs on disk, made from the paper's published numbers and written by the trainer's own code."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from repository import PARAMS

from relu_sparsity.files import read_json, write_json
from relu_sparsity.jobs import job_table
from relu_sparsity.layout import Layout
from relu_sparsity.metrics import METRICS
from relu_sparsity.paper.extract import write_metrics
from relu_sparsity.paper.published import published
from relu_sparsity.params import Params
from relu_sparsity.params_file import parse_params
from relu_sparsity.provenance import record_keys
from relu_sparsity.training.history import History

NUM_SEQUENCES = 40

# The paper's proportions, a hundredth of its steps: 7 % of them are 700.
PAPER_SCALE = {
    "optimizer": {"peak_lr": 3.0e-3, "warmup_steps": 50},
    "training": {"num_steps": 10000, "eval_every_steps": 1000, "eval_sequences": NUM_SEQUENCES},
    "metrics": {"metrics_every_steps": 20, "convergence_window": 1000, "early_steps": 700},
    "mask": {"step": 500},
}


def make_params(**overrides) -> Params:
    """The repository's runs at a scale of the paper's shape and few steps."""
    document = yaml.safe_load((PARAMS).read_text())
    document |= {"scale": "test", "scales": {"test": PAPER_SCALE | overrides}}
    return parse_params(document, Path("params.yaml"))


@dataclass
class Level:
    """Where a metric starts and ends in each layer, in percent, and when it falls."""

    start: Sequence[float]
    end: Sequence[float]
    falls_at: Sequence[float]

    def curve(self, steps):
        """A smooth step per layer, flat before and after."""
        falls = 1 / (1 + np.exp(-(steps[:, None] - np.asarray(self.falls_at)) / 25))
        return np.asarray(self.start) + (np.asarray(self.end) - np.asarray(self.start)) * falls


@dataclass
class Run:
    """What to write for a run."""

    levels: dict[str, Level]
    mlp_dims: list[int]
    on_at_start: Sequence[float]
    final_use: Sequence[float]
    turned_on: Sequence[float]
    accuracy: float = 0.0
    loss: float = 0.0
    parent: dict | None = None
    extra: dict = field(default_factory=dict)


def write_run(folder: Path, params: Params, name: str, seed: int, run: Run) -> None:
    """Writes a run's result files."""
    config = params.runs[name].config
    num_steps = config.training.num_steps
    rng = np.random.default_rng([seed, *name.encode()])
    history = History(run.mlp_dims)
    steps = np.unique([*range(0, num_steps, config.metrics.metrics_every_steps), num_steps - 1])
    history.steps = steps.tolist()
    curves = {metric: level.curve(steps) for metric, level in run.levels.items()}
    if "rise" in run.extra:
        curves["p50"] = curves["p50"] + run.extra["rise"].curve(steps)
    history.unit_use = list(np.stack([curves[metric] for metric in METRICS], axis=-1) / 100)
    history.training = [np.array([4.0, 0.3, 1e-3, 1.0])] * len(steps)
    # The text and its difficulty are the same in all runs; what differs is noise.
    difficulty = np.random.default_rng(0).normal(0, 0.03, NUM_SEQUENCES)
    for step in range(0, num_steps + 1, config.training.eval_every_steps):
        learned = 0.4 * (1 - np.exp(-step / 1000))
        noise = rng.normal(0, 0.002, (2, NUM_SEQUENCES))
        branched = run.parent is None or run.parent["step"] is None or step > run.parent["step"]
        accuracy = learned + difficulty + noise[0] + run.accuracy * branched
        history.eval_steps.append(step)
        history.eval_accuracy.append(accuracy)
        history.eval_loss.append(8 - 10 * (learned + difficulty) + noise[1] + run.loss)
    history.units = {0: [], num_steps - 1: []}
    for layer, size in enumerate(run.mlp_dims):
        order = rng.permutation(size)
        on, gained, final = (
            round(size * values[layer] / 100)
            for values in (run.on_at_start, run.turned_on, run.final_use)
        )
        first, last = np.zeros(size, bool), np.zeros(size, bool)
        first[order[:on]] = True
        last[order[: final - gained]] = True
        last[order[on : on + gained]] = True
        history.units[0].append(first)
        history.units[num_steps - 1].append(last)
    history.write(folder)
    described = config.fingerprinted(params.runs[name].intervention)
    described["model"]["mlp_dims"] = run.mlp_dims
    write_json(
        folder / "run.json",
        {
            "run": name,
            "seed": seed,
            "config": described,
            "parent": run.parent,
            "scale": "test",
            "ngram_losses": {"unigram_loss": 12.0, "bigram_loss": 10.0},
        },
    )


def layout_of(folder: Path) -> Layout:
    """The files of a scale whose results are in `folder`."""
    return Layout(folder.name, folder.parent)


def write_mask(path: Path, mlp_dims: Sequence[int], off: float) -> None:
    """Writes a mask that holds the share `off` of every layer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {f"layer{k}": np.arange(size) >= off * size for k, size in enumerate(mlp_dims)}
    np.savez_compressed(path, **kept)


def _run(params: Params, name: str) -> Run:
    """A run with the paper's numbers, or with ones that fit what the text says."""
    tables = published()["tables"]
    one, two, three = (tables[f"table{k}"]["baseline"] for k in (1, 2, 3))
    model = params.runs[name].config.model
    count, dims = model.num_layers, [params.defaults.model.mlp_dims[0]] * model.num_layers
    if model.mlp_dim is not None:
        dims = list(model.mlp_dims)
    final, turned_on, on_at_start = (
        two[each][:count] for each in ("final_use", "turned_on", "on_at_start")
    )
    batch_use, token_use, sequence_use = (
        one[each][:count] for each in ("batch_use", "token_use", "sequence_use")
    )
    accuracy, loss, parent = 0.0, 0.0, None
    if name.startswith("lr_"):
        batch_use, loss = tables["table5"][name]["batch_use"][:count], 0.05
    elif name.startswith("width"):
        gain = 2.0 if name.endswith("2") else 4.0
        batch_use, token_use = (list(np.add(each, gain)) for each in (batch_use, token_use))
        batch_use = np.minimum(batch_use, 100)
    elif name.startswith("depth"):
        batch_use = np.full(count, 90.0)
        batch_use[[0, count // 2 - 1]] = 14.0
        token_use, sequence_use = np.full(count, 6.0), np.full(count, 60.0)
        on_at_start, final, turned_on = np.full(count, 90.0), np.full(count, 80.0), np.ones(count)
    elif name in ("round1", "round2"):
        if name == "round2":
            dims = tables["table4"]["round1"]["units_used"][:count]
            accuracy, on_at_start = -0.02, np.full(count, 99.0)
            parent = {"run": "round1", "step": None}
        turned_on = np.zeros(count)
        final = 100 * np.divide(tables["table4"][name]["units_used"][:count], dims)
    elif "masked" in name:
        parent = {"run": "baseline", "step": params.runs[name].config.mask.step}
        accuracy = -0.1 if name == "random_masked" else 0.0
    downwards = 450 - 30 * np.arange(count) * 5 / (count - 1)
    together = np.full(count, 350.0)
    levels = {
        "token_use": Level(np.full(count, 50.0), token_use, downwards),
        "sequence_use": Level(np.full(count, 95.0), sequence_use, together),
        "batch_use": Level(on_at_start, batch_use, together),
    }
    ends = {each: np.resize(three[each], count) for each in three}
    ends["p50"] = np.where(np.arange(count) == 0, ends["p50"] - 8, ends["p50"])
    levels |= {each: Level(np.full(count, 50.0), ends[each], downwards) for each in ends}
    rise = Level(np.zeros(count), np.where(np.arange(count) == 0, 8.0, 0.0), np.full(count, 900.0))
    return Run(levels, dims, on_at_start, final, turned_on, accuracy, loss, parent, {"rise": rise})


def write_paper_runs(results_dir: Path, params: Params) -> None:
    """Writes all runs of the scale, and the masks."""
    for name, seed in params.jobs():
        run = _run(params, name)
        write_run(results_dir / "runs" / name / f"seed{seed}", params, name, seed, run)
        if "masked" in name:
            write_mask(results_dir / "runs" / name / f"seed{seed}" / "mask.npz", run.mlp_dims, 0.3)


def write_paper_results(folder: Path) -> tuple[Params, Layout]:
    """A scale of two seeds of every run, with the metrics that other results are made from."""
    params = make_params(seeds=[0, 1], runs={"round1": {"seeds": [1, 2]},
                                             "round2": {"seeds": [1, 2]}})  # fmt: skip
    write_paper_runs(folder, params)
    layout = layout_of(folder)
    for name, run in params.paper_runs.items():
        for seed in run.seeds:
            path = layout.run(name, seed) / "run.json"
            write_json(path, read_json(path) | {"environment": {"device_kind": "cpu"}})
            write_metrics(params, layout, name, seed)
    return params, layout


def record_all(params: Params, layout: Layout) -> None:
    """Lets all results that are there be those of the parameters."""
    for job in job_table(params, layout).values():
        if all(path.is_file() for path in job.outputs):
            told = read_json(job.record) if job.record.is_file() else {}
            write_json(job.record, told | record_keys(job.fingerprint, job.outputs))

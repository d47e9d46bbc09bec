"""Reading exported runs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Int

from relu_sparsity.errors import UserError
from relu_sparsity.files import read_json
from relu_sparsity.layout import RUN_FILES
from relu_sparsity.metrics import METRICS


@dataclass(frozen=True)
class RunHistory:
    """What one training run has measured.

    Attributes:
      run: The experiment.
      seed: Its seed.
      config: The resolved parameters of run.json.
      ngram_losses: The held-out losses of n-grams, in nats per token; none where it does not tell.
      parent_step: The step at which the run branched off its parent, if it did.
      steps: Steps whose batch was measured, before the update.
      unit_use: For each of `METRICS`, fractions 0 to 1.
      eval_steps: Updates done before each evaluation.
      eval_loss: Mean loss of each held-out sequence, in nats per token.
      eval_accuracy: Next-token accuracy on each held-out sequence, 0 to 1.
      units: By step, the units of each layer that the first device batch used.
      heldout_documents: The document of each held-out sequence; none where it does not tell.
    """

    run: str
    seed: int
    config: dict[str, Any]
    parent_step: int | None
    steps: Int[np.ndarray, " steps"]
    unit_use: dict[str, Float[np.ndarray, "steps layers"]]
    eval_steps: Int[np.ndarray, " evals"]
    eval_loss: Float[np.ndarray, "evals sequences"]
    eval_accuracy: Float[np.ndarray, "evals sequences"]
    units: dict[int, list[Bool[np.ndarray, " mlp"]]]
    ngram_losses: dict[str, float] = field(default_factory=dict)
    heldout_documents: list[int] = field(default_factory=list)

    @property
    def mlp_dims(self) -> list[int]:
        """The hidden width of each layer."""
        return self.config["model"]["mlp_dims"]

    @property
    def num_steps(self) -> int:
        """The updates of the whole run."""
        return self.config["training"]["num_steps"]

    def within_last(self, window: int) -> Bool[np.ndarray, " steps"]:
        """Which of `steps` are among the last `window` steps of training."""
        return self.steps > self.num_steps - 1 - window

    def at_convergence(self, metric: str, window: int) -> Float[np.ndarray, " layers"]:
        """The mean of a metric over the last `window` steps, as a fraction."""
        return self.unit_use[metric][self.within_last(window)].mean(axis=0)


def load_run(folder: Path) -> RunHistory:
    """Reads the result files of one run and seed.

    Raises:
      UserError: A file is missing or is not what training exports. The message names it.
    """
    path = folder / "run.json"
    try:
        description = read_json(path)
        config, parent = description["config"], description["parent"]
        num_layers = len(config["model"]["mlp_dims"])
        last_step = config["training"]["num_steps"] - 1
        run, seed = description["run"], description["seed"]
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; train the run first") from None
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: {error} is missing") from None
    steps, unit_use = _read_grid(folder / "unit_use.csv", "layer", METRICS)
    if unit_use[METRICS[0]].shape[1] != num_layers or steps[-1] != last_step:
        raise UserError(
            f"{folder / 'unit_use.csv'}: has {unit_use[METRICS[0]].shape[1]} layers up to step "
            f"{steps[-1]}; allowed: the {num_layers} layers up to step {last_step} of run.json"
        )
    eval_steps, evaluation = _read_grid(
        folder / "evaluation_sequences.csv", "sequence", ("loss", "accuracy")
    )
    return RunHistory(
        run=run,
        seed=seed,
        config=config,
        parent_step=parent and parent["step"],
        steps=steps,
        unit_use=unit_use,
        eval_steps=eval_steps,
        eval_loss=evaluation["loss"],
        eval_accuracy=evaluation["accuracy"],
        units={
            step: _read_layers(folder / "units.npz", f"step{step}/", num_layers)
            for step in (0, last_step)
        },
        ngram_losses=description.get("ngram_losses", {}),
        heldout_documents=description.get("heldout_documents", []),
    )


def load_runs(
    results_dir: Path, runs: Mapping[str, Iterable[int]]
) -> dict[str, dict[int, RunHistory]]:
    """Reads all runs of a scale that are there.

    Args:
      results_dir: `results/<scale>`.
      runs: The seeds of each run.

    Returns:
      By run, then by seed. A run without any result is left out.

    Raises:
      UserError: The results of a run are incomplete or malformed.
    """
    folders = {
        name: {seed: results_dir / "runs" / name / f"seed{seed}" for seed in seeds}
        for name, seeds in runs.items()
    }
    found = {
        name: {seed: load_run(folder) for seed, folder in seeds.items() if _has_results(folder)}
        for name, seeds in folders.items()
    }
    return {name: seeds for name, seeds in found.items() if seeds}


def _has_results(folder: Path) -> bool:
    """Whether anything of a trained run is there: its folder and its mask come before it."""
    return any((folder / name).exists() for name in RUN_FILES)


def load_mask(path: Path, num_layers: int) -> list[Bool[np.ndarray, " mlp"]]:
    """Reads which units of each layer a masked run keeps.

    Raises:
      UserError: The file is missing or is not a mask of so many layers.
    """
    return _read_layers(path, "", num_layers)


def _read_grid(
    path: Path, index: str, columns: tuple[str, ...]
) -> tuple[Int[np.ndarray, " steps"], dict[str, Float[np.ndarray, "steps indices"]]]:
    """Reads a CSV with the columns `step`, `index` and more, a row for every pair of the two."""
    wanted = ("step", index, *columns)
    try:
        with path.open(encoding="utf-8") as file:
            header = tuple(file.readline().strip().split(","))
            if header != wanted:
                raise UserError(
                    f"{path}: line 1: has the columns {','.join(header)}; "
                    f"allowed: {','.join(wanted)}"
                )
            lines = file.readlines()
        if not lines:
            raise UserError(f"{path}: has no rows below its header")
        rows = np.loadtxt(lines, delimiter=",", ndmin=2)
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; train the run first") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    steps = np.unique(rows[:, 0])
    size = len(rows) // len(steps)
    grid = np.stack([np.repeat(steps, size), np.tile(np.arange(size), len(steps))], axis=1)
    if grid.shape != rows[:, :2].shape or (grid != rows[:, :2]).any():
        raise UserError(f"{path}: allowed: rows in order, one for every step and every {index}")
    if not np.isfinite(rows).all():
        line = int(np.argmin(np.isfinite(rows).all(axis=1))) + 2
        raise UserError(f"{path}: line {line}: allowed: finite numbers")
    values = rows[:, 2:].reshape(len(steps), size, len(columns))
    return steps.astype(int), {name: values[..., k] for k, name in enumerate(columns)}


def _read_layers(path: Path, prefix: str, num_layers: int) -> list[Bool[np.ndarray, " mlp"]]:
    try:
        with np.load(path) as arrays:
            return [arrays[f"{prefix}layer{k}"].astype(bool) for k in range(num_layers)]
    except FileNotFoundError:
        raise UserError(f"{path}: is missing; train the run first") from None
    except KeyError as error:
        raise UserError(f"{path}: has no array {error}") from None
    except (OSError, ValueError, BadZipFile) as error:
        raise UserError(f"{path}: is not an NPZ file: {error}") from None

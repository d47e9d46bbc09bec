"""What a run has measured so far, and the files it becomes.

The history is part of the checkpoint, so a resumed run writes the same bytes as one that was
never interrupted. Speed is not part of it: it is never the same twice.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from relu_sparsity.files import AnyPath, atomic_write, write_text
from relu_sparsity.metrics import METRICS

TRAINING_COLUMNS = ("loss", "accuracy", "learning_rate", "grad_norm")


@dataclass
class History:
    """Rows in the order of their steps.

    Attributes:
      mlp_dims: The width of each layer.
      steps: Steps whose batch was measured, before the update.
      unit_use: For each of `steps`, the metrics in the order of `METRICS`, as fractions.
      training: For each of `steps`, `TRAINING_COLUMNS`.
      eval_steps: Updates done before each evaluation.
      eval_loss: For each evaluation, the mean loss of each held-out sequence, in nats.
      eval_accuracy: The same for the next-token accuracy.
      units: For a few steps, the units of each layer that the first device batch used.
    """

    mlp_dims: Sequence[int]
    steps: list[int] = field(default_factory=list)
    unit_use: list[Float[np.ndarray, "layers metrics"]] = field(default_factory=list)
    training: list[Float[np.ndarray, " columns"]] = field(default_factory=list)
    eval_steps: list[int] = field(default_factory=list)
    eval_loss: list[Float[np.ndarray, " sequences"]] = field(default_factory=list)
    eval_accuracy: list[Float[np.ndarray, " sequences"]] = field(default_factory=list)
    units: dict[int, list[Bool[np.ndarray, " _mlp"]]] = field(default_factory=dict)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """The history as a flat tree of arrays, for the checkpoint."""
        return {
            "steps": np.asarray(self.steps, np.int64),
            "unit_use": np.stack(self.unit_use),
            "training": np.stack(self.training),
            "eval_steps": np.asarray(self.eval_steps, np.int64),
            "eval_loss": np.stack(self.eval_loss),
            "eval_accuracy": np.stack(self.eval_accuracy),
            "units_steps": np.asarray(list(self.units), np.int64),
            "units": np.stack([np.concatenate(units) for units in self.units.values()]).astype(
                np.uint8
            ),
        }

    @classmethod
    def from_arrays(cls, mlp_dims: Sequence[int], arrays: dict[str, np.ndarray]) -> "History":
        """The inverse of `to_arrays`."""
        borders = np.cumsum(mlp_dims)[:-1]
        return cls(
            mlp_dims=mlp_dims,
            steps=arrays["steps"].tolist(),
            unit_use=list(arrays["unit_use"]),
            training=list(arrays["training"]),
            eval_steps=arrays["eval_steps"].tolist(),
            eval_loss=list(arrays["eval_loss"]),
            eval_accuracy=list(arrays["eval_accuracy"]),
            units={
                int(step): np.split(units.astype(bool), borders)
                for step, units in zip(arrays["units_steps"], arrays["units"], strict=True)
            },
        )

    def write(self, folder: Path, ngram_losses: Mapping[str, float] | None = None) -> None:
        """Writes unit_use.csv, training.csv, evaluation.csv, evaluation_sequences.csv, units.npz.

        Fractions are 0 to 1, losses in nats.

        Args:
          folder: Where to.
          ngram_losses: The held-out losses of n-grams, which stand beside the model's.
        """
        ngrams = dict(ngram_losses or {})
        _write_csv(
            folder / "unit_use.csv",
            ("step", "layer", *METRICS),
            (
                (step, layer, *values)
                for step, layers in zip(self.steps, self.unit_use, strict=True)
                for layer, values in enumerate(layers)
            ),
        )
        _write_csv(
            folder / "training.csv",
            ("step", *TRAINING_COLUMNS),
            ((step, *row) for step, row in zip(self.steps, self.training, strict=True)),
        )
        evaluations = list(zip(self.eval_steps, self.eval_loss, self.eval_accuracy, strict=True))
        _write_csv(
            folder / "evaluation.csv",
            ("step", "loss", "accuracy", *ngrams),
            (
                (
                    step,
                    loss.astype(np.float64).mean(),
                    accuracy.astype(np.float64).mean(),
                    *ngrams.values(),
                )
                for step, loss, accuracy in evaluations
            ),
        )
        _write_csv(
            folder / "evaluation_sequences.csv",
            ("step", "sequence", "loss", "accuracy"),
            (
                (step, sequence, *pair)
                for step, loss, accuracy in evaluations
                for sequence, pair in enumerate(zip(loss, accuracy, strict=True))
            ),
        )
        write_units(folder / "units.npz", self.units)


def write_units(path: AnyPath, units: dict[int, list[Bool[np.ndarray, " _mlp"]]]) -> None:
    """Writes the used units of each step and layer under the keys `step<S>/layer<L>`."""
    arrays = {
        f"step{step}/layer{layer}": used
        for step, layers in units.items()
        for layer, used in enumerate(layers)
    }
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_units(path: AnyPath, step: int) -> list[Bool[np.ndarray, " _mlp"]]:
    """Reads the used units of each layer at `step`, as written by `write_units`."""
    with path.open("rb") as file, np.load(file) as arrays:
        count = sum(name.startswith(f"step{step}/") for name in arrays.files)
        return [arrays[f"step{step}/layer{layer}"] for layer in range(count)]


def _write_csv(path: Path, header: Sequence[str], rows) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    # Nine digits are what a float32 needs to survive the round trip.
    writer.writerows(
        [value if isinstance(value, int) else f"{value:.9g}" for value in row] for row in rows
    )
    write_text(path, text.getvalue())

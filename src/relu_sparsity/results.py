"""What was trained, for notebooks and scripts: `relu_sparsity.open_results`.

Nothing here imports JAX before `RunResults.model`.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from pydantic import ValidationError

from relu_sparsity.counts import counted, span
from relu_sparsity.errors import UserError
from relu_sparsity.files import AnyPath, is_remote, read_json
from relu_sparsity.layout import Layout, store_root
from relu_sparsity.paper.history import load_mask
from relu_sparsity.params import MASKS, RunConfig
from relu_sparsity.provenance import Digests, changed_files, read_record
from relu_sparsity.store import RunStore
from relu_sparsity.training.history import read_units

if TYPE_CHECKING:
    from relu_sparsity.trained import TrainedModel


class UnknownRun(UserError, KeyError):
    """There is no such run; the message names those that there are."""

    __str__ = Exception.__str__


def open_results(folder: str | Path, store: str | Path | None = None) -> "Results":
    """Opens the results of a scale.

    Args:
      folder: `results/<scale>`.
      store: Where trained parameters are, for `RunResults.model`. The default is the environment
        variable RELU_SPARSITY_STORE, or `store` beside `results`.

    Raises:
      UserError: No run was trained there.
    """
    folder = Path(folder)
    if store is None:
        root = store_root()
        store = root if is_remote(root) else folder.absolute().parents[1] / root
    results = Results(folder, store)
    if not results:
        there = sorted({str(path.parents[3]) for path in folder.glob("*/runs/*/*/run.json")})
        raise UserError(
            f"{folder}: no run was trained here; allowed: "
            f"{', '.join(there) or 'the results of a scale: results/smoke'}"
        )
    return results


class Results(Mapping[tuple[str, int], "RunResults"]):
    """The trained runs of a scale, by name and seed: `results["baseline", 0]`."""

    def __init__(self, folder: Path, store: AnyPath | str) -> None:
        self.folder = folder
        layout = Layout(folder.name, folder.parent)
        found = (
            (RunResults(layout, read_json(path), store), path.parent)
            for path in folder.glob("runs/*/seed*/run.json")
        )
        # A copy of one's own tells of the run that it was taken of.
        self._runs = {
            (run.name, run.seed): run for run, at in found if at == layout.run(run.name, run.seed)
        }

    def __getitem__(self, key: tuple[str, int]) -> "RunResults":
        try:
            return self._runs[key]
        except (KeyError, TypeError):
            there = ", ".join(f"[{name!r}, {seed}]" for name, seed in self)
            raise UnknownRun(f"{self.folder}: {key!r} was not trained; allowed: {there}") from None

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(sorted(self._runs))

    def __len__(self) -> int:
        return len(self._runs)

    def __repr__(self) -> str:
        return "\n  ".join(
            [f"{self.folder}: {counted(len(self), 'run')}", *map(repr, self.values())]
        )

    def history(self) -> pd.DataFrame:
        """All that all runs have measured in training: see `RunResults.history`."""
        return pd.concat([run.history() for run in self.values()], ignore_index=True)

    def evaluation(self) -> pd.DataFrame:
        """The held-out numbers of all runs: see `RunResults.evaluation`."""
        return pd.concat([run.evaluation() for run in self.values()], ignore_index=True)


class RunResults:
    """What one run and seed has become.

    Attributes:
      name: The experiment.
      seed: Its seed.
      record: Its `run.json`: parameters, code and versions that made it, and what it ran on.
      folder: Its result files.
    """

    def __init__(self, layout: Layout, record: dict[str, Any], store: AnyPath | str) -> None:
        self.name: str = record["run"]
        self.seed: int = record["seed"]
        self.record = record
        self.folder = layout.run(self.name, self.seed)
        self._layout = layout
        self._store = store

    def __repr__(self) -> str:
        model, training = self.params.model, self.params.training
        layers = f"{model.num_layers} layers of {span(model.mlp_dims)} units"
        return f"{self.name} seed {self.seed}: {layers}, {training.num_steps:,} steps"

    @cached_property
    def params(self) -> RunConfig:
        """Its parameters, resolved. Those that decide no number of it have their defaults.

        Raises:
          UserError: They are of another version of this package.
        """
        try:
            return RunConfig.from_fingerprinted(self.record["config"])
        except ValidationError as error:
            raise UserError(
                f"{self.folder / 'run.json'}: was written by another version of this package: "
                f"{error}"
            ) from None

    def history(self) -> pd.DataFrame:
        """All that it has measured in training, one number in a row.

        Returns:
          Columns `run`, `seed`, `step` (updates done before the batch), `layer`, `metric`, `value`.
          By layer, as fractions from 0 to 1: `token_use`, `sequence_use`, `batch_use` (of the
          layer's units) and `p50`, `p65`, `p75`, `p90` (of a sequence's tokens). Of the whole
          model, with no `layer`: `loss` (nats per token), `accuracy` (0 to 1), `learning_rate`,
          `grad_norm` (global L2 norm).

        References:
          Section 2.1, A.6.
        """
        use = self._read("unit_use.csv").melt(["step", "layer"], var_name="metric")
        training = self._read("training.csv").melt(["step"], var_name="metric")
        return self._tidy(pd.concat([use.astype({"layer": "Int64"}), training]), "layer")

    def evaluation(self) -> pd.DataFrame:
        """Its held-out numbers, one in a row.

        Returns:
          Columns `run`, `seed`, `step` (updates done), `metric`, `value`: `loss` (nats per token),
          `accuracy` (0 to 1), and for comparison `unigram_loss` and `bigram_loss` (nats per token),
          those of token and token pair frequencies.
        """
        return self._tidy(self._read("evaluation.csv").melt(["step"], var_name="metric"))

    @property
    def unit_steps(self) -> list[int]:
        """The steps of `units`: the first, the last, and for a masked run that of the mask."""
        with np.load(self.folder / "units.npz") as arrays:
            return sorted({int(name.partition("/")[0].removeprefix("step")) for name in arrays})

    def units(self, step: int | None = None) -> list[Bool[np.ndarray, " _mlp"]]:
        """The units of each layer that were above zero anywhere in the device batch at `step`.

        Args:
          step: One of `unit_steps`; None takes the last.

        Raises:
          UserError: The units of this step were not kept.
        """
        steps = self.unit_steps
        chosen = steps[-1] if step is None else step
        if chosen not in steps:
            allowed = ", ".join(map(str, steps))
            raise UserError(f"{self.folder / 'units.npz'}: step {step}; allowed: {allowed}")
        return read_units(self.folder / "units.npz", chosen)

    @property
    def kept_units(self) -> list[Bool[np.ndarray, " _mlp"]] | None:
        """The units of each layer that its mask keeps (section 4.1.1); None of a run without one.

        Raises:
          UserError: The mask is not there, or is another one.
        """
        if self.record["intervention"] not in MASKS:
            return None
        path = self._layout.mask(self.name, self.seed)
        self._require(path, f"mask/{self.name}/seed{self.seed}")
        return load_mask(path, self.params.model.num_layers)

    def model(self, step: int | None = None) -> "TrainedModel":
        """The model, on CPU: call it, or ask which units fire on a text.

        Args:
          step: Updates done: one that the store has, such as the mask step; None takes the last.

        Raises:
          UserError: The store does not have its parameters, or its tokenizer or mask is another.
        """
        from relu_sparsity.trained import TrainedModel

        self._require(self._layout.tokenizer, "tokenizer")
        chosen = self.params.training.num_steps if step is None else step
        checkpoints = self._checkpoints(chosen)
        return TrainedModel(
            self.params, self._layout.tokenizer, checkpoints, chosen, self.kept_units
        )

    def _checkpoints(self, step: int) -> AnyPath:
        """The store's folder that has the parameters at a step."""
        # Results that were kept after an upgrade were trained under another fingerprint.
        accepted = [told["fingerprint"] for told in self.record.get("accepted", [])]
        stores = [
            RunStore(self._store, self.record["scale"], self.name, self.seed, fingerprint)
            for fingerprint in (self.record["fingerprint"], *accepted)
        ]
        folders = [
            folder
            for store in stores
            for folder in (store.checkpoints, *store.folder.glob("branches/*/checkpoint"))
        ]
        found = {int(each.name): folder for folder in folders for each in folder.glob("[0-9]*")
                 if each.name.isdecimal()}  # fmt: skip
        if step in found:
            return found[step]
        if found:
            allowed = ", ".join(map(str, sorted(found)))
            raise UserError(f"{self.name} seed {self.seed}: step {step}; allowed: {allowed}")
        raise UserError(
            f"{stores[0].folder}: has no parameters of {self.name} seed {self.seed}, which stay "
            "in the store where it was trained; copy this folder from there"
        )

    def _require(self, path: Path, job: str) -> None:
        """Checks that a file is the one that the run was trained with."""
        record = read_record(Layout.record(path))
        told = self.record["made_from"]["made_from"][job]
        if (
            record is None
            or record.fingerprint != told
            or not path.is_file()
            or changed_files(record, [path], Digests())
        ):
            raise UserError(
                f"{path}: is missing, or another one than {self.name} seed {self.seed} was trained "
                "with; 'relu-sparsity plan' tells what has changed"
            )

    def _read(self, name: str) -> pd.DataFrame:
        try:
            return pd.read_csv(self.folder / name, float_precision="round_trip")
        except FileNotFoundError:
            raise UserError(f"{self.folder / name}: is missing; run 'snakemake' again") from None

    def _tidy(self, frame: pd.DataFrame, *indices: str) -> pd.DataFrame:
        columns = ["run", "seed", "step", *indices, "metric", "value"]
        frame = frame.assign(run=self.name, seed=self.seed)[columns]
        return frame.sort_values("step", kind="stable", ignore_index=True)

"""What the claims' rules read: the runs of a scale or the paper's tables, and paired tests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from relu_sparsity.paper.extract import LAYER_METRICS, LayerValues, over_all_units
from relu_sparsity.paper.history import RunHistory, load_mask
from relu_sparsity.paper.published import published

if TYPE_CHECKING:
    from relu_sparsity.params import Params

MIN_SEEDS, MIN_DOCUMENTS = 3, 30
"""Pairs of a test: seeds where there are so many, else so many held-out documents."""
MIN_LAYERS = 3
"""Layers of a model in which a claim can set one layer, or the last two, against others."""


class UndecidableError(Exception):
    """The results cannot show what a claim is about; the message says why."""


class Results(Protocol):
    """What a rule reads: the runs of a scale, or the paper's tables."""

    def layers(self, run: str, metric: str) -> LayerValues:
        """A metric of `LAYER_METRICS` in every layer, the mean over seeds."""
        ...

    def total(self, run: str, metric: str) -> float:
        """The share of all units of the model in percent, the mean over seeds."""
        ...


@dataclass(frozen=True)
class PublishedResults:
    """Tables 1-5 of the paper."""

    def layers(self, run: str, metric: str) -> LayerValues:
        """See `Results`."""
        for table in published()["tables"].values():
            if metric in table.get(run, {}):
                return np.array(table[run][metric], float)
        raise UndecidableError(f"the paper has no table of {metric} of {run}")

    def total(self, run: str, metric: str) -> float:
        """See `Results`."""
        if metric == "batch_use":
            return float(self.layers(run, "total_batch_use")[0])
        return float(self.layers(run, metric).mean())


@dataclass(frozen=True)
class Pairs:
    """Two runs' held-out results, paired.

    Attributes:
      steps: Updates before each evaluation that both have.
      differences: The first run minus the second.
      unit: What is paired.
    """

    steps: Int[np.ndarray, " evals"]
    differences: Float[np.ndarray, "evals pairs"]
    unit: str


@dataclass(frozen=True)
class MeasuredResults:
    """The runs of a scale.

    Attributes:
      runs: By run and seed.
      params: The scale's parameters.
      results_dir: Where the masks are.
    """

    runs: dict[str, dict[int, RunHistory]]
    params: "Params"
    results_dir: Path

    def window(self, run: str) -> int:
        """Steps at the end of a run that count as converged."""
        return self.params.runs[run].config.metrics.convergence_window

    @property
    def alpha(self) -> float:
        """The level of every test."""
        return self.params.claims.significance_level

    def seeds(self, run: str) -> list[RunHistory]:
        """All seeds of a run."""
        if run not in self.runs:
            raise UndecidableError(f"there are no results of the run {run}")
        return list(self.runs[run].values())

    def layers(self, run: str, metric: str) -> LayerValues:
        """See `Results`."""
        values = [LAYER_METRICS[metric](each, self.window(run)) for each in self.seeds(run)]
        return np.mean(values, axis=0)

    def total(self, run: str, metric: str) -> float:
        """See `Results`."""
        values = [
            over_all_units(LAYER_METRICS[metric](each, self.window(run)), each)
            for each in self.seeds(run)
        ]
        return float(np.mean(values))

    def curve(
        self, run: str, metric: str
    ) -> tuple[Int[np.ndarray, " steps"], Float[np.ndarray, "steps layers"]]:
        """A metric over the steps in percent, the mean over seeds."""
        seeds = self.seeds(run)
        return seeds[0].steps, 100 * np.mean([each.unit_use[metric] for each in seeds], axis=0)

    def drift(self, run: str) -> float:
        """Points of batch use between the halves of the convergence window, the worst layer's.

        Of the mean over seeds, which is what claims read: it has less of single batches' noise.
        """
        _, values = self.curve(run, "batch_use")
        within = values[self.seeds(run)[0].within_last(self.window(run))]
        half = len(within) // 2
        if half == 0:
            raise UndecidableError(
                f"the convergence window of {run} has fewer than two measurements"
            )
        return float(np.abs(within[half:].mean(axis=0) - within[:half].mean(axis=0)).max())

    def shared_seeds(self, *runs: str) -> list[int]:
        """The seeds that all of some runs have."""
        for run in runs:
            self.seeds(run)
        return sorted(set.intersection(*(set(self.runs[run]) for run in runs)))

    def of_seeds(self, seeds: Sequence[int], *runs: str) -> "MeasuredResults":
        """The same results with only these seeds of some runs, and all of the other runs."""
        chosen = {run: {seed: self.runs[run][seed] for seed in seeds} for run in runs}
        return replace(self, runs=self.runs | chosen)

    def pairs(self, first: str, second: str, metric: Literal["accuracy", "loss"]) -> Pairs:
        """Pairs two runs by seed where enough seeds are shared, else by held-out document."""
        shared = self.shared_seeds(first, second)
        if not shared:
            raise UndecidableError(f"{first} and {second} share no seed")
        arms = [[self.runs[run][seed] for seed in shared] for run in (first, second)]
        sizes = {getattr(each, f"eval_{metric}").shape[1] for arm in arms for each in arm}
        if len(sizes) > 1:
            raise UndecidableError(f"{first} and {second} have other held-out sequences")
        steps = sorted(set.intersection(*(set(each.eval_steps) for arm in arms for each in arm)))
        values = np.array(
            [
                [getattr(each, f"eval_{metric}")[np.isin(each.eval_steps, steps)] for each in arm]
                for arm in arms
            ]
        )
        differences = values[0] - values[1]
        if len(shared) >= MIN_SEEDS:
            return Pairs(np.array(steps), differences.mean(axis=2).T, f"{len(shared)} seeds")
        by_document = of_documents(differences.mean(axis=0), arms[0][0].heldout_documents)
        count = by_document.shape[1]
        if count < MIN_DOCUMENTS:
            raise UndecidableError(
                f"{len(shared)} shared seed(s) of {first} and {second} and {count} held-out "
                f"documents are too little data: {MIN_SEEDS} seeds or {MIN_DOCUMENTS} documents"
            )
        names = ", ".join(map(str, shared))
        return Pairs(np.array(steps), by_document, f"{count} held-out documents, seed {names}")

    def masked(self, run: str) -> float:
        """Percent of all units that a run's mask keeps at zero, the mean over seeds."""
        shares = []
        for seed, history in self.runs[run].items():
            path = self.results_dir / "runs" / run / f"seed{seed}" / "mask.npz"
            kept = load_mask(path, len(history.mlp_dims))
            shares.append(100 * (1 - np.concatenate(kept).mean()))
        return float(np.mean(shares))


def of_documents(
    values: Float[np.ndarray, "evals sequences"], documents: Sequence[int]
) -> Float[np.ndarray, "evals documents"]:
    """One value for each document, for tests of the mean over sequences.

    Sequences of one document are not independent. A t-test of these values has the mean over all
    sequences, and its standard error is the one that is robust to clusters.

    Args:
      values: A value for each sequence.
      documents: The document of each; where there are none, each sequence is one.

    References:
      Cameron and Miller, `A Practitioner's Guide to Cluster-Robust Inference`, 2015, section II.
    """
    if not documents:
        return values
    _, of_sequence = np.unique(documents, return_inverse=True)
    is_of = of_sequence[:, None] == np.arange(of_sequence.max() + 1)
    mean = values.mean(axis=1, keepdims=True)
    return mean + (values - mean) @ is_of * (is_of.shape[1] / is_of.shape[0])


def rank_correlation(first: Any, second: Any) -> float:
    """Spearman's correlation; 0 where all values are the same."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first, second)[0])


def _p_of_mean(differences: Float[np.ndarray, " pairs"], mean: float, alternative: str) -> float:
    """The p-value of a t-test on paired differences; exact where they are all the same."""
    offset = differences - mean
    if np.ptp(offset) == 0:
        value = offset[0]
        shown = {"less": value < 0, "greater": value > 0, "two-sided": value != 0}[alternative]
        return 0.0 if shown else 1.0
    return float(stats.ttest_1samp(offset, 0, alternative=alternative).pvalue)


def p_differs(differences: Float[np.ndarray, " pairs"]) -> float:
    """The p-value of a two-sided paired t-test."""
    return _p_of_mean(differences, 0.0, "two-sided")


def p_below(differences: Float[np.ndarray, " pairs"]) -> float:
    """The p-value of a one-sided paired t-test: small where the differences are below zero."""
    return _p_of_mean(differences, 0.0, "less")


def p_equivalent(differences: Float[np.ndarray, " pairs"], margin: float) -> float:
    """Two one-sided tests (TOST): small where the mean lies within the margin of zero.

    References:
      Schuirmann, `A comparison of the two one-sided tests procedure and the power approach`, 1987
    """
    return max(_p_of_mean(differences, -margin, "greater"), _p_of_mean(differences, margin, "less"))


def holm(p_values: list[float], alpha: float) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects."""
    order = np.argsort(p_values, kind="stable")
    passed = [p_values[k] < alpha / (len(order) - rank) for rank, k in enumerate(order)]
    rejected = np.logical_and.accumulate(passed)
    return rejected[np.argsort(order)].tolist()

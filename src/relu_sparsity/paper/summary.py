"""What DVC shows of a scale: a few numbers of each run, and their curves."""

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import yaml

from relu_sparsity.files import read_json, write_text
from relu_sparsity.paper.verdicts import VERDICTS

if TYPE_CHECKING:
    from relu_sparsity.layout import Layout
    from relu_sparsity.params import Params

# So many points of a curve are more than its picture can show.
_MAX_POINTS = 50


def write_summary(params: "Params", layout: "Layout") -> None:
    """Sums up a scale in a few numbers, for `dvc metrics`, and in curves, for `dvc plots`.

    Reads the results of every run but those of `sensitivity`, and claims.json. Writes

    - metrics.yaml: for every run the mean over its seeds of the held-out `loss` (nats) and of
      `batch_use` (percent of all units), and in `claims` how many are reproduced, not reproduced
      and not decidable;
    - curves/heldout_loss.csv: `run`, `seed`, `step` and `loss` (nats) of all of them;
    - curves/batch_use.csv: `run`, `step`, `layer` and `batch_use` (a fraction) of their first
      seeds.
    """
    means: dict[str, dict[str, float]] = {"loss": {}, "batch_use": {}}
    losses, uses = [], []
    for name, run in params.paper_runs.items():
        folders = {seed: layout.run(name, seed) for seed in run.seeds}
        seeds = [read_json(folder / "metrics.json") for folder in folders.values()]
        for metric, key in (("loss", "loss"), ("batch_use", "total_batch_use")):
            means[metric][name] = float(f"{np.mean([seed[key] for seed in seeds]):.6g}")
        for seed, folder in folders.items():
            evaluations = pd.read_csv(folder / "evaluation.csv")
            losses.append(evaluations[["step", "loss"]].assign(run=name, seed=seed))
        use = pd.read_csv(folders[run.seeds[0]] / "unit_use.csv")
        steps = use.step.unique()
        # The last step is one of them.
        shown = steps[::-1][:: math.ceil(len(steps) / _MAX_POINTS)]
        columns = ["step", "layer", "batch_use"]
        uses.append(use.loc[use.step.isin(shown), columns].assign(run=name))
    found = read_json(layout.results / "claims.json")["counts"]
    verdicts = {verdict.replace(" ", "_"): found[verdict] for verdict in VERDICTS}
    write_text(layout.summary, yaml.safe_dump({"claims": verdicts, **means}, sort_keys=False))
    for path, curves in zip(layout.curves, (losses, uses), strict=True):
        write_text(path, pd.concat(curves).to_csv(index=False))

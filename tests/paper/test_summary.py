import pandas as pd
import yaml
from paper_runs import write_paper_results

from relu_sparsity.files import read_json
from relu_sparsity.paper.summary import write_summary
from relu_sparsity.paper.verdicts import write_claims


def test_every_run_has_its_numbers_and_curves(tmp_path):
    params, layout = write_paper_results(tmp_path / "test")
    write_claims(params, layout)
    write_summary(params, layout)

    told = yaml.safe_load(layout.summary.read_text())
    assert set(told["loss"]) == set(told["batch_use"]) == set(params.paper_runs)
    ends = [read_json(layout.run("round1", seed) / "metrics.json")["loss"] for seed in (1, 2)]
    assert abs(told["loss"]["round1"] - sum(ends) / 2) < 1e-4
    assert sum(told["claims"].values()) == 27

    losses, uses = map(pd.read_csv, layout.curves)
    assert set(losses.run) == set(uses.run) == set(params.paper_runs)
    assert set(losses.seed[losses.run == "round1"]) == {1, 2}
    whole = pd.read_csv(layout.run("round1", 1) / "unit_use.csv")
    shown = uses[uses.run == "round1"]
    assert 25 <= shown.step.nunique() <= 50 < whole.step.nunique()
    assert shown.step.max() == whole.step.max()
    both = shown.merge(whole, on=["step", "layer"], suffixes=("", "_of_the_run"))
    assert len(both) == len(shown)
    assert (both.batch_use == both.batch_use_of_the_run).all()

import json

import pandas as pd
import pytest
import yaml
from paper_runs import write_paper_results

from relu_sparsity.errors import UserError
from relu_sparsity.files import read_json, write_json, write_text
from relu_sparsity.paper.catalog import TABLES
from relu_sparsity.paper.figures import write_figure
from relu_sparsity.paper.summary import write_summary
from relu_sparsity.paper.tables import write_table
from relu_sparsity.paper.verdicts import write_claims
from relu_sparsity.publication import publish, verify


@pytest.fixture
def scale(tmp_path):
    """A scale of two seeds with all its small results, and where they are."""
    params, layout = write_paper_results(tmp_path / "test")
    for table in TABLES:
        write_table(params, layout, table)
    for figure in ("fig01", "fig02", "fig03", "fig04"):
        write_figure(params, layout, figure)
    write_claims(params, layout)
    write_summary(params, layout)
    return params, layout


def edit_metrics(layout, run, seeds, change):
    for seed in seeds:
        path = layout.run(run, seed) / "metrics.json"
        metrics = read_json(path)
        change(metrics)
        write_json(path, metrics)


def test_what_is_published_is_verified(scale, tmp_path):
    params, layout = scale
    folder = tmp_path / "published"
    written = publish(params, layout, folder)
    assert all(path.is_file() for path in written.files)
    assert not written.kept
    numbers = pd.read_csv(folder / "metrics.csv")
    assert set(numbers.run) == set(params.paper_runs)
    assert set(numbers.seed) == {0, 1, 2}
    parameters = yaml.safe_load((folder / "params.yaml").read_text())
    assert parameters["baseline"]["config"]["optimizer"]["peak_lr"] == 3e-3
    found = verify(params, layout, folder)
    assert found.passed
    assert found.numbers == len(numbers) / 2
    assert "Every verdict is the published one." in list(found.lines())


def test_a_number_beyond_the_spread_of_seeds_is_named(scale, tmp_path):
    params, layout = scale
    publish(params, layout, tmp_path / "published")
    published = pd.read_csv(tmp_path / "published/metrics.csv")
    spread = published.groupby(["run", "layer", "metric"]).value.std()
    of_metric = (spread**2).groupby("metric").mean() ** 0.5
    near = 3.9 * max(of_metric["loss"], spread["baseline", "all", "loss"])

    def shift(metrics, by):
        metrics["loss"] += by

    edit_metrics(layout, "baseline", (0, 1), lambda metrics: shift(metrics, near))
    assert verify(params, layout, tmp_path / "published").passed
    edit_metrics(layout, "baseline", (0, 1), lambda metrics: shift(metrics, 0.3 * near))
    found = verify(params, layout, tmp_path / "published")
    assert [(each.run, each.layer, each.metric) for each in found.deviations] == [
        ("baseline", "all", "loss")
    ]
    assert not found.passed
    assert any(line.strip().startswith("baseline: loss is") for line in found.lines())


def test_a_unit_more_where_seeds_had_none_is_no_deviation(scale, tmp_path):
    """Of hundreds of units: no seed had one, and so their spread is 0."""
    params, layout = scale

    def turn_on(share):
        def change(metrics):
            for layer in (key for key in metrics if key.startswith("layer")):
                metrics[layer]["turned_on"] = share

        for name, run in params.paper_runs.items():
            edit_metrics(layout, name, run.seeds, change)

    turn_on(0.0)
    publish(params, layout, tmp_path / "published")
    width = params.runs["baseline"].config.model.mlp_dims[0]
    turn_on(100 / width)
    assert verify(params, layout, tmp_path / "published").passed
    turn_on(100 * 20 / width)
    found = verify(params, layout, tmp_path / "published")
    assert {each.metric for each in found.deviations} == {"turned_on"}


def test_another_verdict_and_a_missing_run_are_named(scale, tmp_path):
    params, layout = scale
    publish(params, layout, tmp_path / "published")
    claims = json.loads((layout.results / "claims.json").read_text())
    claims["claims"][2]["verdict"] = "not decidable"
    write_text(layout.results / "claims.json", json.dumps(claims))
    for seed in (0, 1):
        (layout.run("depth_10", seed) / "metrics.json").unlink()
    found = verify(params, layout, tmp_path / "published")
    assert found.verdicts == {3: ("not decidable", "reproduced")}
    assert found.missing == ["depth_10"]
    assert not found.passed


def test_other_parameters_are_told_but_not_other_seeds(scale, tmp_path):
    params, layout = scale
    publish(params, layout, tmp_path / "published")
    run = params.runs["baseline"]
    optimizer = run.config.optimizer.model_copy(update={"weight_decay": 0.3})
    config = run.config.model_copy(update={"optimizer": optimizer})
    other = run.model_copy(update={"config": config})
    runs = params.runs | {"baseline": other, "depth_10": other.model_copy(update={"seeds": (7,)})}
    edited = params.model_copy(update={"runs": runs})
    found = verify(edited, layout, tmp_path / "published")
    assert "baseline, depth_10: optimizer.weight_decay: 0.3, published 0.1" in found.parameters
    assert not any("seeds" in line for line in found.parameters)


def test_a_published_sensitivity_stays_until_there_is_another(scale, tmp_path):
    params, layout = scale
    folder = tmp_path / "published"
    for path in layout.sensitivity:
        write_text(path, "first")
    assert not publish(params, layout, folder).kept
    for path in layout.sensitivity:
        path.unlink()
    again = publish(params, layout, folder)
    assert [path.name for path in again.kept] == [path.name for path in layout.sensitivity]
    assert all(path.read_text().startswith("first") for path in again.kept)
    told = (folder / "sensitivity.md").read_text()
    assert told == "first\nThis table is of an earlier run than the other results here.\n"
    publish(params, layout, folder)
    assert (folder / "sensitivity.md").read_text() == told
    assert set(again.kept) < set(again.files)
    write_text(layout.sensitivity[0], "second")
    assert not publish(params, layout, folder).kept
    assert (folder / "sensitivity.csv").read_text() == "second"
    assert not (folder / "sensitivity.md").exists()


def test_what_is_no_folder_of_published_results_is_not_touched(scale, tmp_path):
    params, layout = scale
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").write_text("years")
    for folder in (tmp_path / "thesis", tmp_path / "thesis/thesis.tex", layout.results):
        with pytest.raises(UserError, match=rf"{folder}: is not a folder of published results"):
            publish(params, layout, folder)
    assert (tmp_path / "thesis/thesis.tex").read_text() == "years"
    (tmp_path / "empty").mkdir()
    assert publish(params, layout, tmp_path / "empty").files


def test_only_whole_results_are_published_and_what_is_there_stays(scale, tmp_path):
    params, layout = scale
    publish(params, layout, tmp_path / "published")
    (layout.run("masked", 1) / "run.json").unlink()
    with pytest.raises(UserError, match=r"masked/seed1/run.json: is missing; make all results"):
        publish(params, layout, tmp_path / "published")
    assert (tmp_path / "published/claims.md").is_file()
    with pytest.raises(UserError, match=r"nowhere/metrics.csv: is missing"):
        verify(params, layout, tmp_path / "nowhere")
    (layout.results / "claims.json").unlink()
    with pytest.raises(UserError, match=r"claims.json: is missing; .*: make reproduce SCALE="):
        verify(params, layout, tmp_path / "published")

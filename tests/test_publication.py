import json
import shutil

import pandas as pd
import pytest
import yaml
from paper_runs import layout_of, record_all, write_paper_results
from typer.testing import CliRunner

from relu_sparsity.cli import app
from relu_sparsity.errors import UserError
from relu_sparsity.files import read_json, write_json, write_text
from relu_sparsity.paper.catalog import PRUNING, TABLES
from relu_sparsity.paper.figures import write_figure
from relu_sparsity.paper.summary import write_summary
from relu_sparsity.paper.tables import write_table
from relu_sparsity.paper.verdicts import write_claims
from relu_sparsity.publication import PUBLISHED_METRICS, publish, verify

BASELINES = [("baseline", 0), ("baseline", 1)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A scale of two seeds with all its small results."""
    folder = tmp_path_factory.mktemp("made") / "test"
    params, layout = write_paper_results(folder)
    for table in TABLES:
        write_table(params, layout, table)
    for figure in ("fig01", "fig02", "fig03", "fig04"):
        write_figure(params, layout, figure)
    for path in layout.table(PRUNING):
        write_text(path, "savings")
    write_claims(params, layout)
    write_summary(params, layout)
    record_all(params, layout)
    return params, folder


@pytest.fixture
def scale(made, tmp_path):
    """A copy of it, and where its files are."""
    params, folder = made
    shutil.copytree(folder, tmp_path / "test")
    return params, layout_of(tmp_path / "test")


def with_weight_decay(params, run, weight_decay):
    chosen = params.runs[run]
    optimizer = chosen.config.optimizer.model_copy(update={"weight_decay": weight_decay})
    config = chosen.config.model_copy(update={"optimizer": optimizer})
    runs = params.runs | {run: chosen.model_copy(update={"config": config})}
    return params.model_copy(update={"runs": runs})


def edit_metrics(params, layout, jobs, change):
    for run, seed in jobs:
        path = layout.run(run, seed) / "metrics.json"
        metrics = read_json(path)
        change(metrics)
        write_json(path, metrics)
    record_all(params, layout)


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

    edit_metrics(params, layout, BASELINES, lambda metrics: shift(metrics, near))
    assert verify(params, layout, tmp_path / "published").passed
    edit_metrics(params, layout, BASELINES, lambda metrics: shift(metrics, 0.3 * near))
    found = verify(params, layout, tmp_path / "published")
    assert [(each.run, each.layer, each.metric) for each in found.deviations] == [
        ("baseline", "all", "loss")
    ]
    assert not found.passed
    assert any(line.strip().startswith("baseline: loss is") for line in found.lines())


def test_the_command_ends_well_only_if_all_is_as_published(scale, tmp_path, monkeypatch):
    params, layout = scale
    folder = tmp_path / "published"
    publish(params, layout, folder)
    monkeypatch.setattr("relu_sparsity.sharing.load", lambda *_: (params, layout))
    assert CliRunner().invoke(app, ["verify", str(folder)]).exit_code == 0
    claims = read_json(folder / "claims.json")
    claims["claims"][2]["verdict"] = "not decidable"
    write_json(folder / "claims.json", claims)
    for options in ([], ["--json"]):
        refused = CliRunner().invoke(app, ["verify", str(folder), *options])
        assert refused.exit_code == 1
        assert isinstance(refused.exception, UserError)
        assert str(refused.exception) == f"these are not the results of {folder}"


def test_one_published_seed_tells_no_spread(scale, tmp_path):
    params, layout = scale
    folder = tmp_path / "published"
    publish(params, layout, folder)
    numbers = pd.read_csv(folder / "metrics.csv")
    numbers = numbers[(numbers.run != "masked") | (numbers.seed == 0)]
    numbers.to_csv(folder / "metrics.csv", index=False)
    with pytest.raises(UserError, match="has one seed of a run; two are needed"):
        verify(params, layout, folder)


def test_a_unit_more_where_seeds_had_none_is_no_deviation(scale, tmp_path):
    """Of hundreds of units: no seed had one, and so their spread is 0."""
    params, layout = scale

    def turn_on(share):
        def change(metrics):
            for layer in (key for key in metrics if key.startswith("layer")):
                metrics[layer]["turned_on"] = share

        jobs = [job for job in params.jobs() if job[0] in params.paper_runs]
        edit_metrics(params, layout, jobs, change)

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
        layout.record(layout.run("depth_10", seed) / "metrics.json").unlink()
    record_all(params, layout)
    found = verify(params, layout, tmp_path / "published")
    assert found.verdicts == {3: ("not decidable", "reproduced")}
    assert found.missing == ["depth_10"]
    assert not found.passed


def test_other_parameters_are_told_but_not_other_seeds(scale, tmp_path):
    params, layout = scale
    publish(params, layout, tmp_path / "published")
    edited = with_weight_decay(with_weight_decay(params, "baseline", 0.3), "depth_10", 0.3)
    runs = edited.runs | {"depth_10": edited.runs["depth_10"].model_copy(update={"seeds": (7,)})}
    edited = edited.model_copy(update={"runs": runs})
    record_all(edited, layout)
    found = verify(edited, layout, tmp_path / "published")
    assert "baseline, depth_10: optimizer.weight_decay: 0.3, published 0.1" in found.parameters
    assert not any("seeds" in line for line in found.parameters)


def test_a_published_sensitivity_stays_until_there_is_another(scale, tmp_path):
    params, layout = scale
    folder = tmp_path / "published"
    for path in layout.sensitivity:
        write_text(path, "first")
    record_all(params, layout)
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
    # A new one counts when it is whole, and of the parameters.
    for path in layout.sensitivity:
        write_text(path, "second")
    assert len(publish(params, layout, folder).kept) == 3
    record_all(params, layout)
    assert not publish(params, layout, folder).kept
    assert (folder / "sensitivity.md").read_text() == "second"


def test_results_of_other_parameters_are_neither_published_nor_verified(scale, tmp_path):
    params, layout = scale
    folder = tmp_path / "published"
    publish(params, layout, folder)
    before = (folder / "params.yaml").read_text()
    edited = with_weight_decay(params, "lr_x1of3", 0.3)
    for attempt in (publish, verify):
        with pytest.raises(UserError, match=r"(?s)lr_x1of3.*make reproduce SCALE=test.*0.1 -> 0.3"):
            attempt(edited, layout, folder)
    assert (folder / "params.yaml").read_text() == before


def test_results_of_other_versions_that_were_kept_say_so(scale, tmp_path):
    params, layout = scale
    path = layout.run("baseline", 0) / "run.json"
    kept = [{"fingerprint": "of then", "numpy": "0.1"}]
    write_json(path, read_json(path) | {"accepted": kept})
    publish(params, layout, tmp_path / "published")
    told = read_json(tmp_path / "published/made_from.json")
    assert told["baseline/seed0"]["accepted"] == kept
    assert "accepted" not in told["baseline/seed1"]
    assert told["baseline/seed1"]["environment"] == {"device_kind": "cpu"}


def test_only_what_publish_wrote_is_replaced(scale, tmp_path):
    params, layout = scale
    folder = tmp_path / "published"
    publish(params, layout, folder)
    own = (
        "NOTES.md", "tables/by_hand.csv", "mine/figure.svg", "figures/fig_mine.svg",
        "tables/table1_notes.md", "claims.notes.md", "claims.old/x.md", "metrics.ipynb",
    )  # fmt: skip
    for name in own:
        write_text(folder / name, "years")
    write_text(folder / "tables/own_runs.csv", "of a run that is gone")
    write_text(layout.results / "tables/own_runs.csv", "of a run that is gone")
    written = publish(params, layout, folder)
    for name in own:
        assert (folder / name).read_text() == "years"
    assert folder / "tables/own_runs.csv" not in written.files


def test_one_that_was_killed_just_before_its_end_loses_nothing(scale, tmp_path):
    params, layout = scale
    folder = tmp_path / "published"
    publish(params, layout, folder)
    write_text(folder / "NOTES.md", "years")
    folder.rename(tmp_path / ".published.partial")
    publish(params, layout, folder)
    assert (folder / "NOTES.md").read_text() == "years"


def test_single_numbers_that_are_missing_are_named(scale, tmp_path):
    params, layout = scale
    publish(params, layout, tmp_path / "published")

    def drop(metrics):
        del metrics["layer3"]

    edit_metrics(params, layout, [("depth_14", 0), ("depth_14", 1)], drop)
    found = verify(params, layout, tmp_path / "published")
    assert not found.passed
    assert "depth_14, layer 3: batch_use" in found.missing
    assert len(found.missing) == len(PUBLISHED_METRICS)
    assert any(line.startswith("There are no results of depth_14") for line in found.lines())


def test_other_seeds_of_a_run_tell_how_wide_it_is(scale, tmp_path):
    params, layout = scale
    publish(params, layout, tmp_path / "published")
    shutil.rmtree(layout.run("baseline", 0))
    assert verify(params, layout, tmp_path / "published").numbers


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
    told = r"(?s)run 'make reproduce SCALE=test' first.*masked/seed1/run.json: is missing"
    with pytest.raises(UserError, match=told):
        publish(params, layout, tmp_path / "published")
    assert (tmp_path / "published/claims.md").is_file()
    with pytest.raises(UserError, match=r"nowhere/metrics.csv: is missing"):
        verify(params, layout, tmp_path / "nowhere")
    shutil.rmtree(layout.run("masked", 1))
    for path in (*layout.claims, layout.record(layout.claims[0])):
        path.unlink()
    with pytest.raises(UserError, match=r"claims.json: is missing; .*: make reproduce SCALE="):
        verify(params, layout, tmp_path / "published")

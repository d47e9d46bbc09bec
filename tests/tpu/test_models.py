"""Which models a scale trains, and how wide."""

from repository import PARAMS
from small_scale import small_params

from relu_sparsity.params_file import load_params
from relu_sparsity.tpu import models as module


def distinct_models(params):
    models = module.distinct_models(params, list(params.paper_runs.values()))
    return {tuple(model.steps): model for model in models}


def test_runs_of_one_model_are_compiled_once():
    models = distinct_models(load_params(PARAMS, "tpu"))
    assert [list(names) for names in models] == [
        ["baseline", "lr_x1of3", "lr_x2of3", "lr_x5of3", "round1"],
        ["width_x1of2"],
        ["width_x1of4"],
        ["depth_10"],
        ["depth_14"],
        ["masked", "random_masked"],
        ["round2"],
    ]


def test_branches_have_the_papers_widths():
    models = distinct_models(load_params(PARAMS, "tpu"))
    masked = models["masked", "random_masked"]
    assert masked.config.model.mlp_dims == (4358, 25985, 23265, 23921, 28213, 31326), "Table 1"
    assert models["round2",].config.model.mlp_dims == (7455, 24807, 22743, 24478, 27926, 32200), (
        "Table 4"
    )
    assert masked.steps == {"masked": 950_000, "random_masked": 950_000}, "from the mask step on"
    assert [kept.positions.shape for kept in masked.kept_units] == [(1, 32768)] * 6
    assert {kept.mask for kept in masked.kept_units} == {None}, "nothing is left to mask"


def test_without_compaction_the_whole_model_is_trained(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(PARAMS.read_text().replace("compact: true", "compact: false"))
    masked = distinct_models(load_params(file, "tpu"))["masked", "random_masked"]
    assert masked.config.model.mlp_dims == (32768,) * 6
    assert [kept.mask.shape for kept in masked.kept_units] == [(6, 32768)]


def test_widths_of_another_depth_are_unknown():
    params = small_params()
    models = distinct_models(params)
    assert models["masked",].config.model.mlp_dims == (1024, 1024)

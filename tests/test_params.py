"""params.yaml: what it resolves to, and every way to get it wrong."""

import pytest
import yaml
from repository import PARAMS

from relu_sparsity.errors import UserError
from relu_sparsity.params_file import load_params, parse_params


@pytest.fixture
def document():
    return yaml.safe_load(PARAMS.read_text())


def put(document, path, value):
    *folders, key = path.split(".")
    for folder in folders:
        document = document.setdefault(folder, {})
        assert document is not None
    document[key] = value


def test_the_tpu_scale_is_the_papers():
    """Section 2.2 and Table 5."""
    params = load_params(PARAMS, "tpu")
    baseline = params.run("baseline").config
    assert baseline.model.num_layers == 6
    assert baseline.model.mlp_dim == 32768
    assert baseline.optimizer.peak_lr == 3e-3
    assert baseline.optimizer.warmup_steps == 5000
    assert baseline.training.num_steps == 1_000_000
    assert baseline.training.seq_len == 512
    assert baseline.training.per_device_batch_size == 16
    assert baseline.training.global_batch_size == 32 * 16
    assert baseline.mask.step == 50_000
    assert baseline.data.tfds_name == "c4/en"
    lrs = {name: params.runs[name].config.optimizer.peak_lr for name in params.runs}
    assert [lrs[f"lr_x{k}of3"] for k in (1, 2, 5)] == pytest.approx([1e-3, 2e-3, 5e-3])
    shapes = {
        name: (run.config.model.num_layers, run.config.model.mlp_dim)
        for name, run in params.runs.items()
    }
    assert shapes["width_x1of2"] == (6, 16384)
    assert shapes["width_x1of4"] == (6, 8192)
    assert shapes["depth_10"] == (10, 16384)
    assert shapes["depth_14"] == (14, 16384)


@pytest.mark.parametrize("scale", ["smoke", "mini", "gpu", "tpu"])
def test_every_scale_has_every_experiment_parents_first(scale):
    params = load_params(PARAMS, scale)
    assert params.scale == scale
    assert set(params.paper_runs) == {
        "baseline", "lr_x1of3", "lr_x2of3", "lr_x5of3", "width_x1of2", "width_x1of4",
        "depth_10", "depth_14", "masked", "random_masked", "round1", "round2",
    }  # fmt: skip
    order = params.jobs()
    for run, seed in order:
        parent = params.runs[run].parent
        if parent is not None:
            assert order.index((parent, seed)) < order.index((run, seed))
    assert params.branch_steps("baseline") == [params.defaults.mask.step]


@pytest.mark.parametrize("scale", ["smoke", "mini", "gpu", "tpu"])
def test_every_choice_differs_from_the_baseline_of_its_scale(scale):
    params = load_params(PARAMS, scale)
    assert len(params.choices) >= 15
    with_seeds = (
        "mlp_dim_double",
        "paper_choices_decay_x10",
        "untied_decay_x10",
        "paper_choices_batch_x4",
    )
    base = params.runs["baseline"].config
    for run in params.choices.values():
        assert run.sensitivity
        assert run.seeds == ((0, 1, 2) if run.name in with_seeds else (0,))
        assert run.config != base, run.name
    tpu = load_params(PARAMS, "tpu")
    assert "small_embeddings" not in tpu.choices
    with pytest.raises(UserError, match=r"the scale tpu has made this choice already; .*baseline"):
        tpu.run("small_embeddings")
    assert "small_embeddings" in load_params(PARAMS, "mini").choices


@pytest.mark.parametrize("text", ["1e-3", "5e-05", "1E-3", ".5e-2", "2.e-3"])
def test_numbers_are_read_as_dvc_writes_them_and_todays_yaml_means_them(tmp_path, text):
    edited = PARAMS.read_text().replace("peak_lr: 3.0e-3", f"peak_lr: {text}")
    assert edited != PARAMS.read_text()
    (tmp_path / "params.yaml").write_text(edited)
    assert load_params(tmp_path / "params.yaml", "tpu").defaults.optimizer.peak_lr == float(text)


def test_a_vocabulary_in_ones_home_is_found(document, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(document, "scales.smoke.tokenizer.model", "~/own.model")
    model = parse_params(document, PARAMS).run("baseline").config.tokenizer.model
    assert model == str(tmp_path / "own.model")


def test_all_that_is_set_is_shown(document):
    put(document, "scales.smoke.training.tensorboard", True)
    put(document, "scales.smoke.data.read_threads", 7)
    run = parse_params(document, PARAMS).run("baseline")
    assert run.resolved()["config"]["training"]["tensorboard"] is True
    assert run.resolved()["config"]["data"]["read_threads"] == 7
    assert "tensorboard" not in run.model_dump()["config"]["training"], "it changes no result"


def test_a_choice_is_an_own_run(document):
    put(document, "sensitivity", {"baseline": {"model": {"norm": "rmsnorm"}}})
    with pytest.raises(UserError, match=r"sensitivity\.baseline: is also in runs"):
        parse_params(document, PARAMS)
    put(document, "sensitivity", {"wide": {"model": {"mlp_dims": 3}}})
    with pytest.raises(UserError, match=r"sensitivity\.wide\.model\.mlp_dims"):
        parse_params(document, PARAMS)
    put(document, "sensitivity", {"wide": {"parent": "baseline"}})
    with pytest.raises(UserError, match=r"sensitivity\.wide\.parent"):
        parse_params(document, PARAMS)
    put(document, "sensitivity", {"wide": {"model": {"mlp_dim": "x2"}, "seeds": [4, 5]}})
    assert parse_params(document, PARAMS).runs["wide"].seeds == (4, 5)


def test_nearer_layers_win(document):
    put(document, "defaults.optimizer.b1", 0.1)
    put(document, "scales.smoke.optimizer.b1", 0.2)
    assert parse_params(document, PARAMS).run("baseline").config.optimizer.b1 == 0.2
    put(document, "runs.baseline", {"optimizer": {"b1": 0.3}})
    assert parse_params(document, PARAMS).run("baseline").config.optimizer.b1 == 0.3
    put(document, "scales.smoke.runs", {"baseline": {"optimizer": {"b1": 0.4}}})
    assert parse_params(document, PARAMS).run("baseline").config.optimizer.b1 == 0.4
    assert parse_params(document, PARAMS).run("round1").config.optimizer.b1 == 0.2


def test_an_experiment_takes_lines_in_the_file_only(document):
    document["runs"]["wide_and_slow"] = {"model": {"mlp_dim": "x2"}, "optimizer": {"peak_lr": 1e-4}}
    run = parse_params(document, PARAMS).run("wide_and_slow")
    assert run.config.model.mlp_dim == 512
    assert run.config.optimizer.peak_lr == 1e-4


@pytest.mark.filterwarnings("error")
def test_a_width_for_each_layer_goes_to_json_and_back(document):
    widths = [256, 74, 130, 115, 125, 138]
    document["runs"]["ragged"] = {"model": {"mlp_dim": widths}}
    config = parse_params(document, PARAMS).run("ragged").config
    assert config.model.mlp_dims == tuple(widths)
    written = config.model_dump(mode="json")
    assert written["model"]["mlp_dim"] == widths
    assert type(config).model_validate(written) == config


BAD = [
    ("scales.smoke.model.num_layers", 0, "scales.smoke.model.num_layers: 0: .*greater than 0"),
    ("scales.smoke.model.num_layers", 2.5, "scales.smoke.model.num_layers: 2.5: .*integer"),
    ("scales.tpu.model.num_heads", 3, "scales.tpu.model.num_heads: 3 .*divide emb_dim 512"),
    ("scales.smoke.model.emb_dim", "wide", "scales.smoke.model.emb_dim: 'wide': .*integer"),
    ("defaults.model.norm", "batch", "defaults.model.norm: 'batch': .*'layernorm' or 'rmsnorm'"),
    ("scales.smoke.model.layers", 6, "scales.smoke.model.layers: is no known key; allowed"),
    ("scales.smoke.modle", {}, "scales.smoke.modle: is no known key; allowed: data, tokenizer"),
    ("scales.smoke.model", 3, "scales.smoke.model: 3: allowed: a mapping"),
    ("model", {}, "params.yaml: model: is no known key; allowed: scale, def"),
    ("scale", "huge", "scale: 'huge' is not one of the scales; allowed: smoke, mini, gpu, tpu"),
    ("scales.smoke.mask.step", 500, "scales.smoke.mask.step: 500 is past the end"),
    ("scales.smoke.mask.step", 0, "scales.smoke.mask.step: 0: .*greater than 0"),
    ("scales.smoke.mask.step", 451, "mask.step: 451: the last 50 steps of masked, .* at most 450"),
    ("branches.masked.parent", "weight_decay_x3", "parent: 'weight_decay_x3' is of sensitivity"),
    ("scales.smoke.seeds", 3, "seeds: 3: input should be a list"),
    ("scales.smoke.data.packages", "numpy", "packages: 'numpy': input should be a list"),
    (
        "scales.smoke.metrics.convergence_window", 501,
        "convergence_window: 501 is longer than the history; allowed: at most .*500",
    ),
    ("scales.smoke.optimizer.warmup_steps", 900, "warmup_steps: 900 is longer than the history"),
    ("scales.smoke.training.global_batch_size", 12, "global_batch_size: 12 is not a multiple of"),
    ("scales.smoke.data.num_shards", 3, "num_shards: 3 does not divide"),
    ("scales.smoke.data.heldout_fraction", 1.5, "heldout_fraction: 1.5: .*less than 1"),
    ("scales.smoke.data.source", "web", "data.source: 'web': .*'docs', 'tfds' or 'text'"),
    ("scales.smoke.data.source", "text", "files: the source 'text' needs at least one file"),
    ("branches.masked.parent", "base", "branches.masked.parent: 'base' is no run"),
    ("branches.masked.seeds", [3], "branches.masked.seeds: .*seed 3 is not a seed of"),
    ("runs.baseline.seeds", [], "runs.baseline.seeds: .*at least 1 item"),
    ("runs.baseline.seeds", [1, 1], "runs.baseline.seeds: .*a seed twice"),
    ("runs.baseline.intervention", "mask_unused", "runs.baseline.intervention: is no known key"),
    ("branches", None, "branches: is missing or empty; allowed: {} where there are none"),
    ("branches.other", {"parent": "baseline"}, "branches.other.intervention: is missing"),
    ("branches.baseline", {"parent": "round1"}, "branches.baseline: is also in runs; allowed"),
    ("branches.masked.intervention", "mask", "intervention: 'mask': .*'mask_unused'"),
    ("branches.masked.model", {"mlp_dim": 8}, "model.mlp_dim: 8 differs from its parent"),
    ("branches.masked.optimizer", {"weight_decay_on": "kernels"}, "_on: 'kernels' differs from"),
    ("runs.width_x1of4.model.mlp_dim", None, "runs.width_x1of4.model.mlp_dim: is empty; allowed"),
    ("branches.masked.data", {}, "branches.masked.data: is no known key; allowed: model"),
    ("branches.round2.model", {"num_layers": 2}, "round2.model.num_layers: 2: .*allowed: 6"),
    ("runs.width_x1of2.model.mlp_dim", "x1/3", "'x1/3' of 256 is 85.3333; allowed: .*whole"),
    ("runs.lr_x1of3.optimizer.peak_lr", "x1/0", "runs.lr_x1of3.optimizer.peak_lr: 'x1/0'"),
    ("runs.lr_x1of3.model", {"norm": "x2"}, "runs.lr_x1of3.model.norm: 'x2' is a factor, but"),
    ("runs.Big-Run", {}, "runs.Big-Run: 'Big-Run': .*pattern"),
    ("scales.smoke.runs", {"nobody": {}}, "scales.smoke.runs.nobody: is no run; allowed: baseline"),
    ("defaults.claims.round2_margin", 0.005, "round2_margin: 0.005 is not more than equivalence_m"),
    ("defaults.claims.equivalence_margin", -1, "defaults.claims.equivalence_margin: -1: .*than 0"),
    ("scales.smoke.model.num_layers", True, "scales.smoke.model.num_layers: True: .*integer"),
    ("scales.smoke.model.num_layers", "6", "scales.smoke.model.num_layers: '6': .*integer"),
    ("scales.smoke.model.mlp_bias", "off", "scales.smoke.model.mlp_bias: 'off': .*boolean"),
    ("scales.smoke.optimizer.peak_lr", "2e-2", "smoke.optimizer.peak_lr: '2e-2': .*number"),
    ("runs.baseline.seeds", [True], "runs.baseline.seeds.0: True: .*integer"),
    ("runs.baseline.seeds", [2**40], "runs.baseline.seeds.0: 1099511627776: .*less than"),
    ("scales", {"my scale": {}}, "scales: 'my scale'; allowed: a name of small letters"),
    ("scales", {2024: {}}, "scales: 2024; allowed: a name of small letters"),
    ("scale", ["smoke"], r"scale: \['smoke'\] is not one of the scales"),
    ("branches.masked.training", {"eval_sequences": 8}, "training.eval_sequences: 8 differs from"),
    (
        "branches.twice", {"parent": "masked", "intervention": "mask_random"},
        "branches.twice.parent: 'masked' is itself a branch",
    ),
    ("scales.smoke.resources", {"threads": 0}, "scales.smoke.resources.threads: 0: .*than 0"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{b[0]}={b[1]}" for b in BAD])
def test_names_the_key_the_value_and_what_is_allowed(document, path, value, message):
    put(document, path, value)
    with pytest.raises(UserError, match=message):
        parse_params(document, PARAMS)


def test_runs_must_not_branch_off_each_other(document):
    del document["runs"]["round1"]
    document["branches"]["round1"] = {"parent": "round2", "intervention": "used_widths"}
    with pytest.raises(UserError, match=r"branch off each other \(round2 -> round1 -> round2\)"):
        parse_params(document, PARAMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scale: [", "not a YAML file"),
        ("- a", "allowed: a mapping with the keys scale"),
        ("scale: smoke", "scales: is missing or empty"),
        ("scales: {smoke: {}}", "runs: is missing or empty"),
    ],
)
def test_names_what_is_wrong_with_the_file(tmp_path, text, message):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_params(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_params(tmp_path / "params.yaml")


def test_unknown_runs_and_seeds_are_named():
    params = load_params(PARAMS)
    with pytest.raises(UserError, match=r"run 'best' is not in params.yaml; allowed: baseline"):
        params.run("best")
    with pytest.raises(UserError, match=r"run 'baseline' has no seed 7 .*allowed: 0"):
        params.run("baseline", 7)


def test_a_short_run_needs_no_mask_step(document):
    document["runs"]["short"] = {"training": {"num_steps": "x1/4"}}
    assert parse_params(document, PARAMS, "smoke").run("short").config.training.num_steps == 125


def test_layers_of_several_widths_are_masked_but_not_compacted(document):
    widths = {"model": {"mlp_dim": [256, 256, 128, 128, 128, 128]}}
    document["runs"]["uneven"] = widths
    document["branches"]["uneven_masked"] = widths | {
        "parent": "uneven", "intervention": "mask_unused",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"uneven_masked.mask.compact: true .*; allowed: false"):
        parse_params(document, PARAMS, "smoke")
    document["branches"]["uneven_masked"]["mask"] = {"compact": False}
    assert not parse_params(document, PARAMS, "smoke").run("uneven_masked").config.mask.compact


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text() + "\nruns:\n  again: {}\n")
    with pytest.raises(UserError, match=r"the key 'runs' stands twice(.|\n)*line \d+"):
        load_params(path)


def test_a_folder_is_no_parameter_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_params(tmp_path)

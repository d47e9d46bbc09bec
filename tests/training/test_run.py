"""A run from its parameters to what the loop trains."""

import json

import numpy as np
import pytest
import yaml
from repository import PARAMS

from relu_sparsity.files import write_json
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import parse_params
from relu_sparsity.runs import resolve
from relu_sparsity.training import run as module
from relu_sparsity.training.history import write_units


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    monkeypatch.setenv("RELU_SPARSITY_STORE", str(tmp_path / "store"))
    layout = Layout("smoke", root=tmp_path / "results")

    def resolved(name, seed=0, **edit):
        document = yaml.safe_load(PARAMS.read_text())
        for section, values in edit.items():
            document["scales"]["smoke"].setdefault(section, {}).update(values)
        return resolve(parse_params(document, PARAMS, "smoke"), layout, name, seed)

    return resolved


USED = [np.arange(256) < 20 * (layer + 1) for layer in range(6)]


def mask_of(run):
    write_units(run.parent.store.branch(run.config.mask.step) / "units.npz",
                {run.config.mask.step: USED})  # fmt: skip
    module.write_mask(run)
    with np.load(run.intervention_file) as arrays:
        return [arrays[f"layer{layer}"] for layer in range(6)]


def test_the_random_mask_is_another_one_of_the_same_size(run_of):
    unused, random = (mask_of(run_of(name)) for name in ("masked", "random_masked"))
    np.testing.assert_array_equal(unused, USED)
    assert [layer.sum() for layer in random] == [layer.sum() for layer in USED]
    assert not any(map(np.array_equal, random, USED))
    over_all = mask_of(run_of("random_masked", mask={"random_over": "model"}))
    assert [layer.sum() for layer in over_all] != [layer.sum() for layer in USED]
    other = mask_of(run_of("random_masked", mask={"seed": 5}))
    assert not np.array_equal(other, random)


def test_round_2_is_as_wide_as_what_round_1_used_at_its_end(run_of):
    run = run_of("round2", 1, round2={"width_multiple_of": 1})
    last = run.parent.config.training.num_steps - 1
    write_units(run.parent.folder / "units.npz", {0: [~used for used in USED], last: USED})
    module.write_widths(run)
    assert json.loads(run.intervention_file.read_text()) == {"mlp_dims": [20, 40, 60, 80, 100, 120]}


@pytest.fixture
def without_text(monkeypatch):
    monkeypatch.setattr(module, "prepare_text", lambda data: None)
    monkeypatch.setattr(module.sources, "documents", lambda data, folder, split: [split])
    monkeypatch.setattr(module, "load_tokenizer", lambda path: None)


def write_manifest(run):
    training = run.config.training
    told = {"seq_len": training.seq_len, "documents": [0] * training.eval_sequences,
            "ngram_losses": {"unigram_loss": 6.0}}  # fmt: skip
    write_json(run.manifest, {"heldout_text": told})


def test_a_job_has_its_runs_seed_and_text(run_of, without_text):
    run = run_of("round1", 1)
    write_manifest(run)
    job = module.training_job(run)
    assert job.seed == 1
    assert (job.train_documents, job.heldout_documents) == (["train"], ["heldout"])
    assert job.ngram_losses == {"unigram_loss": 6.0}


@pytest.mark.parametrize("cut", [{"seq_len": 32}, {"eval_sequences": 8}])
def test_of_text_that_a_run_cuts_otherwise_nothing_is_known(run_of, without_text, cut):
    run = run_of("baseline")
    write_manifest(run)
    other = run_of("baseline", training=cut)
    assert module.training_job(other).ngram_losses == {}
    assert module._heldout_text(other) == {}

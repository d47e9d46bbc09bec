"""What a result means: parameters, code, packages, and what makes it stale."""

from importlib import metadata

import pytest
import yaml
from repository import PARAMS

from relu_sparsity import fingerprint
from relu_sparsity.jobs import job_table
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import parse_params


def table(change=lambda document: None):
    document = yaml.safe_load(PARAMS.read_text())
    change(document)
    return job_table(parse_params(document, PARAMS, "smoke"), Layout("smoke"))


def changed_runs(change):
    before, after = table(), table(change)
    return {
        name.split("/")[1]
        for name, job in before.items()
        if job.rule == "train" and job.fingerprint.hash != after[name].fingerprint.hash
    }


def edit(path, value):
    def change(document):
        *folders, key = path.split(".")
        for folder in folders:
            document = document.setdefault(folder, {})
        document[key] = value

    return change


EVERY_RUN = {name.split("/")[1] for name, job in table().items() if job.rule == "train"}


@pytest.mark.parametrize(
    ("path", "value", "stale"),
    [
        ("runs.lr_x1of3.optimizer.peak_lr", 1e-4, {"lr_x1of3"}),
        ("runs.baseline", {"optimizer": {"b1": 0.8}}, {"baseline", "masked", "random_masked"}),
        ("runs.round1.model", {"mlp_dim": 64}, {"round1", "round2"}),
        ("branches.masked.mask", {"step": 100}, {"masked"}),
        ("scales.smoke.mask.seed", 5, {"random_masked"}),
        ("scales.smoke.mask.compact", False, {"masked", "random_masked"}),
        ("scales.smoke.round2", {"width_multiple_of": 8}, {"round2"}),
        ("scales.smoke.training.seq_len", 32, EVERY_RUN),
        ("scales.smoke.data.packages", ["networkx"], EVERY_RUN),
        ("scales.smoke.tokenizer.vocab_size", 512, EVERY_RUN),
        ("scales.smoke.training.checkpoint_every_steps", 7, set()),
        ("scales.smoke.training.log_every_steps", 7, set()),
        ("scales.smoke.data.read_threads", 8, set()),
        ("scales.smoke.training.tensorboard", True, set()),
        ("scales.smoke.metrics.convergence_window", 50, set()),
        ("scales.smoke.metrics.early_steps", 50, set()),
        ("scales.smoke.claims", {"equivalence_margin": 0.006}, set()),
        ("scales.smoke.resources", {"threads": 2}, set()),
        ("scales.mini.training.seq_len", 32, set()),
    ],
)
def test_a_parameter_makes_just_the_runs_stale_that_depend_on_it(path, value, stale):
    assert changed_runs(edit(path, value)) == stale


def test_no_two_jobs_share_a_fingerprint():
    jobs = table()
    # A figure's and a table's own record tells which it is; those of the same runs share one.
    hashes = [job.fingerprint.hash for job in jobs.values() if job.rule not in ("figure", "table")]
    assert len(set(hashes)) == len(hashes)


def test_the_order_of_keys_means_nothing():
    one, other = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    assert fingerprint.digest(one) == fingerprint.digest(other)


def test_masks_of_other_intentions_are_other_masks():
    jobs = table()
    one, other = (jobs[f"mask/{run}/seed0"] for run in ("masked", "random_masked"))
    assert one.fingerprint.hash != other.fingerprint.hash


SOURCE = '''
"""A module."""

def double(x):
    """Doubles."""
    return 2 * x
'''


@pytest.mark.parametrize(
    "same",
    [
        SOURCE.replace('"""Doubles."""', '"""Gives twice the value."""'),
        SOURCE.replace('    """Doubles."""\n', ""),
        SOURCE.replace('"""A module."""', "# A module."),
        SOURCE.replace("return 2 * x", "return (2\n            * x)  # twice"),
    ],
)
def test_comments_docstrings_and_formatting_mean_nothing(same):
    assert same != SOURCE
    assert fingerprint.syntax(same) == fingerprint.syntax(SOURCE)


@pytest.mark.parametrize(
    "other",
    [
        SOURCE.replace("2 * x", "3 * x"),
        SOURCE.replace("2 * x", "x * 2"),
        SOURCE.replace("2 *", "2.0 *"),
        SOURCE.replace("double", "twice"),
        SOURCE.replace("def double(x)", "def double(x=1)"),
    ],
)
def test_a_changed_meaning_shows(other):
    assert fingerprint.syntax(other) != fingerprint.syntax(SOURCE)


def test_code_is_what_the_writer_imports_less_what_has_no_meaning():
    training = set(fingerprint.closure("training.run"))
    assert {"training.run", "training.loop", "training.step", "model", "kernels"} <= training
    assert {"sparsity", "interventions", "data.pipeline", "data.docs"} <= training
    # Functions import it: it needs TFDS, which nothing else does.
    assert "data.builders" in training
    assert not training & set(fingerprint.WITHOUT_MEANING)
    assert not any(name.startswith("paper") for name in training)
    tables = set(fingerprint.closure("paper.tables"))
    assert "paper.extract" in tables
    assert "model" not in tables
    # What saves FLOPs is shown with the tables' own writing, and with the FLOPs.
    assert {"paper/tables.py", "flops.py"} <= set(table()["pruning"].fingerprint.code)


def test_what_is_said_to_have_no_meaning_is_there():
    for name in fingerprint.WITHOUT_MEANING:
        assert (fingerprint.PACKAGE.joinpath(*name.split(".")).with_suffix(".py")).is_file(), name


def test_the_report_means_its_captions_and_its_style():
    code = table()["report"].fingerprint.code
    assert {"workflow/report/figure.rst", "workflow/report/style.css"} <= set(code)


def test_a_file_is_known_by_its_content(tmp_path):
    caption, hashes = tmp_path / "caption.rst", []
    for text in ("One.", "Another.", "One."):
        caption.write_text(text)
        hashes.append(fingerprint.code([], [caption]))
    assert hashes[0] == hashes[2] != hashes[1]


def test_packages_that_change_numbers_are_in_every_runs_fingerprint(monkeypatch):
    packages = table()["train/baseline/seed0"].fingerprint.packages
    wanted = {"jax", "jaxlib", "flax", "optax", "grain", "sentencepiece", "numpy"}
    assert wanted <= set(packages)
    assert packages["jax"] == metadata.version("jax")
    before = {name: job.fingerprint.hash for name, job in table().items()}
    monkeypatch.setattr(
        fingerprint, "_version", lambda name: "0" if name == "optax" else packages.get(name, "1")
    )
    after = {name: job.fingerprint.hash for name, job in table().items()}
    assert all(before[name] != after[name] for name in before if name.startswith("train/"))


def test_a_given_tokenizer_is_known_by_its_content(tmp_path):
    def use(path):
        return edit("scales.smoke.tokenizer", {"vocab_size": 512, "model": str(path)})

    one, same, other = (tmp_path / name for name in ("one.model", "same.model", "other.model"))
    one.write_bytes(b"model")
    same.write_bytes(b"model")
    other.write_bytes(b"another")
    hashes = [table(use(path))["tokenizer"].fingerprint.hash for path in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]

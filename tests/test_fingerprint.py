"""What makes a run stale, and what does not."""

from pathlib import Path

import pytest
import yaml

from relu_sparsity import fingerprint
from relu_sparsity.params import parse_params

FILE = Path(__file__).parent.parent / "params.yaml"


def fingerprints(change=lambda document: None):
    document = yaml.safe_load(FILE.read_text())
    change(document)
    params = parse_params(document, FILE, "smoke")
    return {run: fingerprint.run(params, run, seed).hash for run, seed in params.jobs()}


def changed_runs(change):
    before, after = fingerprints(), fingerprints(change)
    return {run for run in before if before[run] != after[run]}


def edit(path, value):
    def change(document):
        *folders, key = path.split(".")
        for folder in folders:
            document = document.setdefault(folder, {})
        document[key] = value

    return change


EVERY_RUN = set(fingerprints())


@pytest.mark.parametrize(
    ("path", "value", "stale"),
    [
        ("runs.lr_x1of3.optimizer.peak_lr", 1e-4, {"lr_x1of3"}),
        ("runs.baseline", {"optimizer": {"b1": 0.8}}, {"baseline", "masked", "random_masked"}),
        ("runs.round1.model", {"mlp_dim": 64}, {"round1", "round2"}),
        ("branches.masked.mask", {"step": 100}, {"masked"}),
        ("scales.smoke.mask.seed", 5, {"random_masked"}),
        ("scales.smoke.round2", {"width_multiple_of": 8}, {"round2"}),
        ("scales.smoke.training.seq_len", 32, EVERY_RUN),
        ("scales.smoke.data.packages", ["networkx"], EVERY_RUN),
        ("scales.smoke.tokenizer.vocab_size", 512, EVERY_RUN),
        ("scales.smoke.training.checkpoint_every_steps", 7, set()),
        ("scales.smoke.training.log_every_steps", 7, set()),
        ("scales.smoke.metrics.convergence_window", 50, set()),
        ("scales.smoke.metrics.early_steps", 50, set()),
        ("scales.smoke.claims", {"equivalence_margin": 0.01}, set()),
        ("scales.smoke.resources", {"threads": 2}, set()),
        ("scales.mini.training.seq_len", 32, set()),
    ],
)
def test_a_parameter_makes_just_the_runs_stale_that_depend_on_it(path, value, stale):
    assert changed_runs(edit(path, value)) == stale


def test_no_two_runs_share_a_fingerprint():
    assert len(set(fingerprints().values())) == len(EVERY_RUN)


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


def test_every_module_that_training_imports_is_covered():
    """A module that is forgotten here would leave stale results in place."""
    covered = {
        *fingerprint.TRAINING_MODULES, *fingerprint.DATA_MODULES, *fingerprint.TOKENIZER_MODULES,
    }  # fmt: skip
    package = fingerprint.PACKAGE
    found = {
        str(path.relative_to(package))
        for folder in ("data", "training")
        for path in (package / folder).glob("*.py")
        if path.name != "__init__.py"
    } | {"model.py", "sparsity.py", "interventions.py"}
    # How a checkpoint is stored, and what is told of a run, do not change its results.
    assert found - covered == {"training/checkpoints.py", "training/progress.py"}
    assert covered <= found

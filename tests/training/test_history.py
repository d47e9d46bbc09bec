"""The history survives a checkpoint and is written without a loss."""

import csv

import numpy as np

from relu_sparsity.metrics import METRICS
from relu_sparsity.training.history import History, read_units


def make_history():
    rng = np.random.default_rng(0)
    return History(
        mlp_dims=[4, 3],
        steps=[0, 10],
        unit_use=list(rng.random((2, 2, 7))),
        training=list(rng.random((2, 4))),
        eval_steps=[0, 10],
        eval_loss=list(rng.random((2, 5)).astype(np.float32)),
        eval_accuracy=list(rng.random((2, 5)).astype(np.float32)),
        units={0: [np.array([1, 0, 1, 1], bool), np.array([0, 0, 1], bool)]},
    )


def test_arrays_give_the_history_back():
    history = make_history()
    again = History.from_arrays([4, 3], history.to_arrays())
    assert again.steps == history.steps
    assert again.eval_steps == history.eval_steps
    for name in ("unit_use", "training", "eval_loss", "eval_accuracy"):
        np.testing.assert_array_equal(getattr(again, name), getattr(history, name))
    for ours, theirs in zip(again.units[0], history.units[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_files_hold_every_row_and_float32_exactly(tmp_path):
    history = make_history()
    history.write(tmp_path)
    with (tmp_path / "unit_use.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["layer"]) for row in rows] == [
        ("0", "0"), ("0", "1"), ("10", "0"), ("10", "1"),
    ]  # fmt: skip
    found = np.array([[float(row[metric]) for metric in METRICS] for row in rows])
    np.testing.assert_allclose(found, np.concatenate(history.unit_use), rtol=1e-8)
    with (tmp_path / "evaluation_sequences.csv").open() as file:
        losses = [np.float32(row["loss"]) for row in csv.DictReader(file)]
    np.testing.assert_array_equal(losses, np.concatenate(history.eval_loss))
    np.testing.assert_array_equal(read_units(tmp_path / "units.npz", 0)[1], [False, False, True])


def test_the_same_history_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        make_history().write(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_the_losses_of_ngrams_stand_beside_the_models(tmp_path):
    make_history().write(tmp_path, {"unigram_loss": 6.5, "bigram_loss": 4.25})
    with (tmp_path / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["unigram_loss"], row["bigram_loss"]) for row in rows] == [("6.5", "4.25")] * 2

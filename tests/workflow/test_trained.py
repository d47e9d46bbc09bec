"""What runs have become, called."""

import matplotlib as mpl
import numpy as np
import pytest

import relu_sparsity as rs
from relu_sparsity.data import sources
from relu_sparsity.data.pipeline import heldout_batches, train_batches
from relu_sparsity.errors import UserError
from relu_sparsity.metrics import METRICS
from relu_sparsity.paper.figures import STYLE, to_svg
from relu_sparsity.sparsity import unit_use

TEXT = "Returns the gradient"


@pytest.fixture(scope="module")
def runs(finished):
    return rs.open_results(finished.results, store=finished.folder / "store")


@pytest.fixture(scope="module")
def model(runs):
    return runs["masked", 0].model()


@pytest.fixture(scope="module")
def documents(runs, tmp_path_factory):
    data = runs["baseline", 0].params.data
    prepared = sources.prepare(data, tmp_path_factory.mktemp("text"))
    return {split: sources.documents(data, prepared, split) for split in ("train", "heldout")}


@pytest.mark.parametrize(
    ("run", "seed"), [("baseline", 0), ("depth_10", 0), ("masked", 0), ("round2", 1)]
)
def test_has_the_held_out_loss_that_the_run_has_measured(runs, documents, run, seed):
    trained = runs[run, seed]
    model, training = trained.model(), trained.params.training
    (rows,) = heldout_batches(
        documents["heldout"],
        model.tokenizer,
        seq_len=training.seq_len,
        num_sequences=training.eval_sequences,
        batch_size=training.eval_sequences,
    )
    logits = model(rows[:, :-1]).astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    loss = -np.take_along_axis(log_probabilities, rows[:, 1:, None], axis=-1).mean()
    evaluation = trained.evaluation().set_index(["step", "metric"]).value
    assert loss == pytest.approx(evaluation[training.num_steps, "loss"], rel=1e-5)


def test_hidden_activations_give_the_use_that_the_run_has_measured(runs, documents):
    """At the mask step, of which the store has the parameters before the update."""
    trained, step = runs["baseline", 0], 12
    model, training = trained.model(step), trained.params.training
    batches = train_batches(
        documents["train"],
        model.tokenizer,
        seq_len=training.seq_len,
        global_batch_size=training.global_batch_size,
        num_shards=1,
        seed=0,
    )
    tokens = [next(batches) for _ in range(step + 1)][step][:, :-1]
    hidden = model.hidden(tokens)
    measured = trained.history().set_index(["step", "layer", "metric"]).value
    for layer, values in enumerate(hidden):
        use = unit_use(values)
        for metric in METRICS:
            assert use[metric] == pytest.approx(measured[step, layer, metric], abs=1e-6)
    for values, kept in zip(hidden, runs["masked", 0].kept_units, strict=True):
        np.testing.assert_array_equal((values > 0).any(axis=(0, 1)), kept)


@pytest.mark.parametrize("name", ["masked", "random_masked"])
def test_masked_units_are_zero_and_units_have_their_numbers_in_the_whole_model(runs, name):
    run = runs[name, 0]
    model = run.model()
    tokens = np.random.default_rng(0).integers(0, model.tokenizer.vocab_size, (8, 16))
    for values, kept in zip(model.hidden(tokens), run.kept_units, strict=True):
        assert values.shape == (8, 16, 32)
        assert (values >= 0).all()
        assert (values[..., ~kept] == 0).all()
        assert (values[..., kept] > 0).any()


def test_units_that_fire_on_a_text(model):
    units = model.units(TEXT)
    assert list(units) == ["position", "token", "layer", "unit", "activation"]
    tokens = model.tokenizer.encode(TEXT)[:-1]
    assert model.tokenizer.decode(tokens) == TEXT
    hidden = model.hidden(TEXT)
    assert len(units) == sum((values > 0).sum() for values in hidden)
    for row in units.itertuples():
        assert row.activation == hidden[row.layer][0, row.position, row.unit] > 0
    words = units.drop_duplicates("position").set_index("position").token
    assert "".join(words).replace("▁", " ").strip() in TEXT
    assert units.equals(model.units(tokens))


def test_nothing_depends_on_what_comes_later(model):
    whole, start = model.units(TEXT), model.units("Returns the")
    count = len(model.tokenizer.encode("Returns the")) - 1
    assert whole[whole.position < count].equals(start)
    np.testing.assert_array_equal(model(TEXT)[:, :count], model("Returns the"))


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ("", "1 sequences of 0; allowed: one or more, of 1 to 16 tokens"),
        (np.zeros(17, int), "1 sequences of 17; "),
        (np.array([3, 400]), "3 to 400; allowed: 0 to 399"),
        (np.zeros((0, 4), int), "0 sequences of 4; "),
        (np.zeros((2, 4), int), "2 sequences; allowed: a text, or one sequence"),
    ],
)
def test_tokens_that_are_not_allowed(model, tokens, told):
    with pytest.raises(UserError, match=told):
        model.units(tokens)


def test_a_step_without_parameters_is_told_with_those_that_have_some(runs):
    with pytest.raises(UserError, match=r"baseline seed 0: step 13; allowed: 12, 20, 24$"):
        runs["baseline", 0].model(13)


def test_the_figure_shows_the_share_of_units_and_has_the_same_bytes_each_time(model, tmp_path):
    with mpl.rc_context(STYLE):
        for name in ("a.svg", "b.svg"):
            (tmp_path / name).write_text(to_svg(model.plot_units(TEXT)))
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    axes = model.plot_units(TEXT).axes[0]
    shown = axes.images[0].get_array()
    units = model.units(TEXT)
    counts = units.groupby(["layer", "position"]).size().unstack(fill_value=0)
    np.testing.assert_allclose(shown, 100 * counts.reindex(range(6), fill_value=0) / 32, rtol=1e-6)
    assert len(axes.get_xticklabels()) == shown.shape[1]

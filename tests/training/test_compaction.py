"""A masked model trains without its masked units as it would with them."""

import jax
import numpy as np
import pytest

from relu_sparsity.errors import Interrupted
from relu_sparsity.training.checkpoints import Checkpoints
from relu_sparsity.training.compaction import Compaction
from relu_sparsity.training.loop import train
from relu_sparsity.training.step import make_mesh, make_steps

VOCAB_SIZE = 400
NUM_STEPS = 107


@pytest.fixture
def kept():
    generator = np.random.default_rng(0)
    return [generator.random(16) < share for share in (0.3, 0.7)]


@pytest.fixture
def masked_job(make_job, config, tmp_path, kept):
    """Branches off at step 7; returns a function that builds the masked job."""
    branch = tmp_path / "branch"
    train(make_job("parent", branches={7: branch}), until=7, num_devices=1)

    def make(name, **mask):
        longer = config.model_copy(
            update={
                "training": config.training.model_copy(update={"num_steps": NUM_STEPS}),
                "mask": config.mask.model_copy(update=mask),
            }
        )
        return make_job(name, config=longer, start=(branch, 7), unit_masks=kept)

    return make


def states(config, kept):
    """A train state of the whole model, filled with numbers, and the shapes of the compact one."""
    mesh = make_mesh(1)
    whole = make_steps(config, vocab_size=VOCAB_SIZE, mesh=mesh)
    part = make_steps(config.with_mlp_dims(kept.mlp_dims), vocab_size=VOCAB_SIZE, mesh=mesh)
    generator = np.random.default_rng(1)
    filled = jax.tree.map(lambda leaf: generator.random(leaf.shape), whole.state)
    return filled, part.state


@pytest.mark.parametrize("multiple_of", [1, 4, 16, 64])
def test_what_is_taken_out_and_put_back_is_the_same_state(config, kept, multiple_of):
    part = Compaction(kept, multiple_of=multiple_of)
    whole, shapes = states(config, part)
    taken = part.take(whole, shapes)
    assert jax.tree.map(np.shape, taken) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    jax.tree.map(np.testing.assert_array_equal, part.put_back(taken, whole), whole)


def test_only_kept_units_are_written_back(config, kept):
    part = Compaction(kept, multiple_of=4)
    whole, shapes = states(config, part)
    changed = jax.tree.map(lambda leaf: leaf + 1, part.take(whole, shapes))
    after = part.put_back(changed, whole)
    before = whole.params["stacks"][0]["blocks"]["mlp"]
    mlp = after.params["stacks"][0]["blocks"]["mlp"]
    for layer, own in enumerate(kept):
        for name, axis in (("up", 1), ("down", 0)):
            new = np.moveaxis(mlp[name]["kernel"][layer], axis, 0)
            old = np.moveaxis(before[name]["kernel"][layer], axis, 0)
            np.testing.assert_array_equal(new[own], old[own] + 1)
            np.testing.assert_array_equal(new[~own], old[~own])


@pytest.mark.parametrize(
    ("num_kept", "multiple_of", "width"),
    [(0, 1, 1), (0, 8, 8), (1, 8, 8), (8, 8, 8), (9, 8, 16), (16, 1, 16), (9, 32, 20), (20, 8, 20)],
)
def test_widths_are_rounded_up_and_never_beyond_the_layer(num_kept, multiple_of, width):
    kept = np.random.default_rng(0).permutation(np.arange(20) < num_kept)
    part = Compaction([kept], multiple_of=multiple_of)
    assert part.mlp_dims == [width]
    assert part.unit_masks[0].sum() == num_kept
    assert set(np.flatnonzero(kept)) <= set(part.units[0])
    np.testing.assert_array_equal(part.positions[0][part.units[0]], np.arange(width))
    assert (np.delete(part.positions[0], part.units[0]) == width).all()


def parts(state):
    """The parameters, and the first and second moments."""
    (adam,) = (each for each in state.opt_state if hasattr(each, "mu"))
    return state.params, adam.mu, adam.nu


def last_state(job, config):
    steps = make_steps(config, vocab_size=VOCAB_SIZE, mesh=make_mesh(1))
    checkpoints = Checkpoints(job.checkpoints)
    restored = checkpoints.restore_latest(steps.state)
    checkpoints.close()
    assert restored.step == NUM_STEPS
    return jax.device_get(restored.state)


def require_equal(ours, theirs, kept):
    assert ours.steps == theirs.steps
    np.testing.assert_allclose(ours.training, theirs.training, rtol=1e-4)
    np.testing.assert_allclose(ours.eval_loss, theirs.eval_loss, rtol=1e-4)
    np.testing.assert_allclose(ours.unit_use, theirs.unit_use, atol=0.01)
    np.testing.assert_array_equal(ours.unit_use[0], theirs.unit_use[0])
    for step, layers in theirs.units.items():
        for layer, own in enumerate(layers):
            assert np.mean(ours.units[step][layer] != own) <= 1 / 16
            assert not (ours.units[step][layer] & ~kept[layer] & (step >= 7)).any()


def require_equal_states(after, expected, kept):
    # Parameters, and Adam's two moments of them.
    for trained, wanted in zip(parts(after), parts(expected), strict=True):
        mlp, wanted_mlp = (each["stacks"][0]["blocks"]["mlp"] for each in (trained, wanted))
        for layer, own in enumerate(kept):
            for name, leaf, axis in (("up", "kernel", 1), ("up", "bias", 0), ("down", "kernel", 0)):
                new, old = (
                    np.moveaxis(each[name][leaf][layer], axis, 0) for each in (mlp, wanted_mlp)
                )
                np.testing.assert_allclose(new[own], old[own], atol=2e-3)
                assert np.abs(new[own]).max() > 0
    np.testing.assert_allclose(
        after.params["embed"]["embedding"], expected.params["embed"]["embedding"], atol=2e-3
    )


def test_trains_as_the_masked_whole_model_does(masked_job, config, kept):
    whole = masked_job("whole", compact=False)
    history, state = train(whole, num_devices=1), last_state(whole, config)
    for multiple_of in (1, 8):
        compact = masked_job(f"{multiple_of}", compact=True, width_multiple_of=multiple_of)
        require_equal(train(compact, num_devices=1), history, kept)
        require_equal_states(last_state(compact, config), state, kept)


def test_masked_units_stay_as_they_were_at_the_mask_step(masked_job, config, kept):
    job = masked_job("compact")
    folder, step = job.start
    steps = make_steps(config, vocab_size=VOCAB_SIZE, mesh=make_mesh(1))
    parents = Checkpoints(folder / "checkpoint")
    before = jax.device_get(parents.restore(step, steps.state).state)
    parents.close()
    train(job, num_devices=1)
    after = last_state(job, config)
    mlp, mlp_before = (each.params["stacks"][0]["blocks"]["mlp"] for each in (after, before))
    for layer, own in enumerate(kept):
        new, old = (each["up"]["kernel"][layer] for each in (mlp, mlp_before))
        np.testing.assert_array_equal(new[:, ~own], old[:, ~own])
        assert (new[:, own] != old[:, own]).any()


def test_resumed_equals_uninterrupted(masked_job, written, monkeypatch):
    uninterrupted = written(train(masked_job("uninterrupted"), num_devices=1))
    job = masked_job("resumed")
    stopping = Checkpoints.save

    def stop_after_saving(self, checkpoint):
        stopping(self, checkpoint)
        if checkpoint.step == 40:
            raise Interrupted

    monkeypatch.setattr(Checkpoints, "save", stop_after_saving)
    with pytest.raises(Interrupted):
        train(job, num_devices=1)
    monkeypatch.setattr(Checkpoints, "save", stopping)
    assert written(train(job, num_devices=1)) == uninterrupted

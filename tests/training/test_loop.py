"""Runs that end, stop, resume, branch off and fail."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest

from relu_sparsity.data.pipeline import train_batches
from relu_sparsity.errors import Interrupted, UserError
from relu_sparsity.interventions import unused_mask
from relu_sparsity.training import checkpoints as checkpoint_module
from relu_sparsity.training import loop
from relu_sparsity.training.history import read_units
from relu_sparsity.training.loop import train


def change(config, section, **values):
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def batches_of(job):
    """The batches of a job, from a pipeline of their own."""
    training = job.config.training
    return train_batches(
        job.train_documents,
        job.tokenizer,
        seq_len=training.seq_len,
        global_batch_size=training.global_batch_size,
        num_shards=job.config.data.num_shards,
        seed=job.seed,
    )


@pytest.fixture
def stop_after(monkeypatch):
    """Sends a signal to this process when the run has done some steps."""

    def arrange(steps, number=signal.SIGTERM):
        advance = loop.Progress.advance

        def advance_and_stop(self, step, *told):
            advance(self, step, *told)
            if step + 1 == steps:
                os.kill(os.getpid(), number)

        monkeypatch.setattr(loop.Progress, "advance", advance_and_stop)

    yield arrange
    monkeypatch.undo()


def test_tells_how_long_the_devices_waited_for_input(make_job, config, text):
    class Late(Sequence):
        def __len__(self):
            return len(text[0])

        def __getitem__(self, index):
            time.sleep(0.3)
            return text[0][index]

    config = change(config, "training", eval_every_steps=14, log_every_steps=14)
    shares = {}
    for name, changes in {"prompt": {}, "late": {"train_documents": Late()}}.items():
        job = make_job(name, config=config, **changes)
        train(job, num_devices=1)
        shares[name] = json.loads(job.progress.read_text())["input_share"]
    assert 0 <= shares["prompt"] < shares["late"] <= 1


def test_records_what_was_asked_for(make_job, config):
    job = make_job()
    history = train(job, num_devices=1)
    assert history.steps == [0, 3, 6, 9, 12, 13]
    assert history.eval_steps == [0, 6, 12, 14]
    assert sorted(history.units) == [0, 13]
    assert all(loss.shape == (12,) for loss in history.eval_loss)
    assert history.training[-1][0] < history.training[0][0]
    use = np.stack(history.unit_use)
    assert use.shape == (6, 2, 7)
    assert (use >= 0).all()
    assert (use <= 1).all()
    token, sequence, batch = use[..., 0], use[..., 1], use[..., 2]
    assert (token <= sequence).all()
    assert (sequence <= batch).all()
    assert job.throughput.read_text().startswith("step,tokens_per_second\n")


def test_loss_of_the_first_batch_is_that_of_a_plain_model(make_job, config):
    """The recorded loss, accuracy and use against NumPy on the model's own logits."""
    import jax
    from flax import nnx

    from relu_sparsity.model import Transformer

    job = make_job(seed=3)
    history = train(job, num_devices=1)
    rows = next(batches_of(job))
    model = Transformer(
        config.model,
        vocab_size=job.tokenizer.vocab_size,
        max_len=16,
        rngs=nnx.Rngs(jax.random.key(3)),
    )
    logits = np.asarray(model(jax.numpy.asarray(rows[:, :-1])), np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = rows[:, 1:]
    loss = -np.take_along_axis(log_probs, targets[..., None], -1).mean()
    accuracy = (logits.argmax(-1) == targets).mean()
    np.testing.assert_allclose(history.training[0][:2], [loss, accuracy], rtol=1e-5)


@pytest.mark.parametrize("steps", [3, 8, 13])
def test_resumed_equals_uninterrupted(make_job, written, stop_after, monkeypatch, steps):
    expected = written(train(make_job("whole"), num_devices=1))
    job = make_job("stopped")
    stop_after(steps)
    with pytest.raises(Interrupted, match=rf"stopped at step {steps} of 14; the same command"):
        train(job, num_devices=1)
    monkeypatch.undo()
    assert written(train(job, num_devices=1)) == expected


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    make_job, written, stop_after, monkeypatch, caplog
):
    expected = written(train(make_job("whole"), num_devices=1))
    job = make_job("damaged")
    stop_after(9)
    with pytest.raises(Interrupted):
        train(job, num_devices=1)
    monkeypatch.undo()
    newest = job.checkpoints / "9"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with caplog.at_level(logging.INFO):
        assert written(train(job, num_devices=1)) == expected
    assert "the checkpoint at step 9 is damaged" in caplog.text
    assert "resumes at step 8 of 14" in caplog.text
    assert list((job.checkpoints.parent / "damaged").iterdir())


def test_a_checkpoint_of_other_numbers_than_were_saved_is_damaged(
    make_job, written, stop_after, monkeypatch, caplog
):
    """Whole files with a wrong number in them: only the digest tells."""
    expected = written(train(make_job("whole"), num_devices=1))
    job = make_job("changed")
    stop_after(9)
    with pytest.raises(Interrupted):
        train(job, num_devices=1)
    monkeypatch.undo()
    checkpoints = loop.Checkpoints(job.checkpoints)
    steps = loop.make_steps(job.config, vocab_size=400, mesh=loop.make_mesh(1))
    good = checkpoints.restore(9, steps.state)
    digest = checkpoint_module._content(good)
    changed = good._replace(state=loop.jax.tree.map(lambda leaf: leaf + 1, good.state))
    monkeypatch.setattr(checkpoint_module, "_content", lambda checkpoint: digest)
    (job.checkpoints / "9").rename(job.checkpoints.parent / "before")
    checkpoints.close()
    checkpoints = loop.Checkpoints(job.checkpoints)
    checkpoints.save(changed)
    checkpoints.close()
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        assert written(train(job, num_devices=1)) == expected
    assert "its SHA-256 is not that of what was saved" in caplog.text
    assert "resumes at step 8 of 14" in caplog.text


def test_a_run_that_goes_on_from_another_kind_of_device_says_so(make_job, tmp_path, caplog):
    branch = tmp_path / "branch"
    train(make_job("parent", branches={7: branch}), until=7, num_devices=1)
    assert loop.device_kind_of(branch) == "cpu"
    (branch / "device_kind.txt").write_text("TPU v2\n")
    masks = unused_mask(read_units(branch / "units.npz", 7))
    with caplog.at_level(logging.WARNING):
        train(make_job("masked", start=(branch, 7), unit_masks=masks), num_devices=1)
    assert "goes on at step 7, on cpu, from what its parent has become on TPU v2" in caplog.text


@pytest.mark.optimized
@pytest.mark.parametrize("step", [6, 7])
def test_a_branch_changes_no_bit_of_the_run_that_it_leaves(
    make_job, written, tmp_path, step, programs
):
    alone = written(train(make_job("alone"), num_devices=1))
    left = train(make_job("left", branches={step: tmp_path / "branch"}), num_devices=1)
    assert written(left) == alone


def test_a_branch_is_there_when_all_of_it_is(make_job, tmp_path, monkeypatch):
    """Where saves go on beside the run, it can be killed before the checkpoint is whole."""
    branch = tmp_path / "branch"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Checkpoints, "restore", killed)
        with pytest.raises(KeyboardInterrupt):
            train(make_job("parent", branches={7: branch}), until=7, num_devices=1)
    assert not (branch / "units.npz").exists()
    train(make_job("again", branches={7: branch}), until=7, num_devices=1)
    assert (branch / "units.npz").exists()


def test_a_held_out_loss_that_is_not_finite_stops_too(make_job, config):
    one_step = change(config, "optimizer", peak_lr=1e38, warmup_steps=0)
    job = make_job(config=change(one_step, "training", num_steps=1))
    with pytest.raises(UserError, match=r"the held-out loss is nan after 1 steps; allowed: finite"):
        train(job, num_devices=1)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(make_job, config):
    diverging = change(config, "optimizer", peak_lr=1e30)
    job = make_job(config=change(diverging, "training", checkpoint_every_steps=1))
    with pytest.raises(UserError, match=r"the loss is .* at step \d+; allowed: finite.*peak_lr"):
        train(job, num_devices=1)
    checkpoints = loop.Checkpoints(job.checkpoints)
    assert checkpoints.steps()
    steps = loop.make_steps(
        job.config,
        vocab_size=job.tokenizer.vocab_size,
        mesh=loop.make_mesh(1),
    )
    last = checkpoints.restore(checkpoints.steps()[-1], steps.init(0))
    checkpoints.close()
    assert all(np.isfinite(leaf).all() for leaf in loop.jax.tree.leaves(last.state.params))


def test_metrics_do_not_depend_on_the_number_of_devices(make_job, config):
    short = change(config, "training", num_steps=2)
    short = change(short, "metrics", metrics_every_steps=1)
    one, *others = (
        train(make_job(f"on {num_devices}", config=short), num_devices=num_devices)
        for num_devices in (1, 2, 8)
    )
    for many in others:
        np.testing.assert_array_equal(one.unit_use[0], many.unit_use[0])
        for ours, theirs in zip(one.units[0], many.units[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_allclose(one.training, many.training, rtol=1e-5)
        np.testing.assert_allclose(one.eval_loss, many.eval_loss, rtol=1e-5)


@pytest.fixture(params=["one program", "two programs"])
def programs(request, monkeypatch):
    """Short runs measure at every step and keep what is due; long ones measure when it is due."""
    if request.param == "two programs":
        monkeypatch.setattr(loop, "_STEPS_OF_ONE_PROGRAM", 0)


@pytest.mark.optimized
def test_a_program_that_only_measures_when_due_gives_the_same_history(make_job, monkeypatch):
    one = train(make_job("one"), num_devices=1)
    monkeypatch.setattr(loop, "_STEPS_OF_ONE_PROGRAM", 0)
    called = []
    update = loop._Training._update

    def noted(self, step, *, measure):
        called.append(measure)
        return update(self, step, measure=measure)

    monkeypatch.setattr(loop._Training, "_update", noted)
    two = train(make_job("two"), num_devices=1)
    assert set(called) == {True, False}
    assert one.steps == two.steps
    np.testing.assert_allclose(one.training, two.training, rtol=1e-4)
    np.testing.assert_allclose(one.unit_use, two.unit_use, atol=0.02)


def test_names_a_batch_that_the_devices_cannot_share(make_job, config):
    odd = change(config, "training", global_batch_size=6, per_device_batch_size=3)
    with pytest.raises(UserError, match=r"global_batch_size: 6 .* 8 devices; allowed: a multiple"):
        train(make_job(config=odd))


def test_a_masked_run_goes_on_from_its_parents_batch(make_job, tmp_path):
    branch = tmp_path / "branch"
    parent = train(make_job("parent", branches={7: branch}), num_devices=1)
    used = read_units(branch / "units.npz", 7)
    masks = unused_mask(used)
    assert not all(layer.all() for layer in masks)
    masked = train(make_job("masked", start=(branch, 7), unit_masks=masks), num_devices=1)
    assert masked.steps == parent.steps
    before = [step for step in parent.steps if step < 7]
    np.testing.assert_array_equal(masked.unit_use[: len(before)], parent.unit_use[: len(before)])
    assert sorted(masked.units) == [0, 7, 13]
    for layer, kept in zip(masked.units[7], masks, strict=True):
        np.testing.assert_array_equal(layer, kept)
    for layer, kept in zip(masked.units[13], masks, strict=True):
        assert not layer[~kept].any()


def test_masking_what_a_batch_does_not_use_changes_nothing_on_that_batch(
    make_job, config, tmp_path
):
    every_step = change(config, "metrics", metrics_every_steps=1)
    branch = tmp_path / "branch"
    parent = train(make_job("parent", config=every_step, branches={7: branch}), num_devices=1)
    masks = unused_mask(read_units(branch / "units.npz", 7))
    masked = train(
        make_job("masked", config=every_step, start=(branch, 7), unit_masks=masks), num_devices=1
    )
    np.testing.assert_allclose(masked.training[7], parent.training[7], rtol=1e-6)


@pytest.mark.optimized
def test_a_replayed_branch_is_the_branch_of_the_whole_run(make_job, tmp_path):
    whole, replayed = tmp_path / "whole_branch", tmp_path / "replayed_branch"
    train(make_job("whole", branches={7: whole}), num_devices=1)
    train(make_job("replay", branches={7: replayed}), until=7, num_devices=1)
    assert (whole / "units.npz").read_bytes() == (replayed / "units.npz").read_bytes()
    masks = unused_mask(read_units(whole / "units.npz", 7))
    histories = [
        train(make_job(name, start=(branch, 7), unit_masks=masks), num_devices=1)
        for name, branch in (("a", whole), ("b", replayed))
    ]
    for one, other in zip(*(history.to_arrays().values() for history in histories), strict=True):
        np.testing.assert_array_equal(one, other)


def test_losses_are_those_of_a_plain_optax_loop(make_job, config):
    """Every update takes its own step's batch and learning rate (section 2.2)."""
    import jax
    import optax
    from flax import nnx

    from relu_sparsity.model import Transformer

    every_step = change(config, "metrics", metrics_every_steps=1)
    job = make_job(config=every_step)
    history = train(job, num_devices=1)
    batches = batches_of(job)
    ours = config.optimizer
    schedule = optax.warmup_cosine_decay_schedule(0.0, ours.peak_lr, ours.warmup_steps, 14)
    adamw = optax.adamw(schedule, ours.b1, ours.b2, ours.eps, weight_decay=ours.weight_decay)
    model = Transformer(
        config.model,
        vocab_size=job.tokenizer.vocab_size,
        max_len=16,
        rngs=nnx.Rngs(jax.random.key(0)),
    )
    graph, params = nnx.split(model)

    @jax.jit
    def update(params, state, rows):
        def loss_fn(params):
            logits = nnx.merge(graph, params)(rows[:, :-1])
            one_hot = jax.nn.one_hot(rows[:, 1:], logits.shape[-1])
            return -(jax.nn.log_softmax(logits) * one_hot).sum(-1).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = adamw.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss, optax.global_norm(grads)

    state, losses, norms = adamw.init(params), [], []
    for _ in range(14):
        params, state, loss, norm = update(params, state, next(batches))
        losses.append(float(loss))
        norms.append(float(norm))
    recorded = np.stack(history.training)
    np.testing.assert_allclose(recorded[:, 0], losses, rtol=2e-4)
    np.testing.assert_allclose(recorded[:, 2], schedule(np.arange(14)), rtol=1e-5)
    np.testing.assert_allclose(recorded[:, 3], norms, rtol=2e-3)


def test_the_training_code_imports_what_costs_only_where_it_is_used():
    unused = {"tensorflow_datasets", "tensorflow", "matplotlib", "pandas", "gcsfs", "snakemake"}
    code = (
        "import sys, relu_sparsity.cli, relu_sparsity.jobs, relu_sparsity.training.run\n"
        f"print(sorted({unused} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

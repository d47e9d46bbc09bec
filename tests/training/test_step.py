"""The schedule, the optimizer and the compiled steps against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from relu_sparsity.model import Transformer, sinusoidal_positions
from relu_sparsity.params import OptimizerParams
from relu_sparsity.sparsity import PERCENTILES
from relu_sparsity.training.compaction import Compaction
from relu_sparsity.training.step import (
    adamw_direction,
    learning_rates,
    make_mesh,
    make_steps,
    token_losses,
)


def test_warm_up_is_linear_and_the_decay_a_cosine():
    """The paper's schedule, section 2.2: 5000 steps up to 3e-3, then a cosine."""
    num_steps, warmup, peak = 100_000, 5000, 3e-3
    rates = learning_rates(OptimizerParams(), num_steps)
    assert rates.shape == (num_steps,)
    assert rates[0] == 0
    for step in (1, 1234, 4999):
        np.testing.assert_allclose(rates[step], peak * step / warmup, rtol=1e-4)
    for step in (5000, 8000, 52_500, 99_999):
        progress = (step - warmup) / (num_steps - warmup)
        expected = peak * 0.5 * (1 + np.cos(np.pi * progress))
        np.testing.assert_allclose(rates[step], expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_a_run_may_have_no_warm_up_or_no_decay(warmup_steps):
    rates = learning_rates(OptimizerParams(peak_lr=1.0, warmup_steps=warmup_steps), 10)
    assert np.isfinite(rates).all()
    assert rates[0] == (1 if warmup_steps == 0 else 0)
    assert rates.max() == pytest.approx(1 if warmup_steps == 0 else 0.9)


def test_decays_to_the_given_fraction():
    rates = learning_rates(OptimizerParams(peak_lr=1.0, warmup_steps=1, final_lr_fraction=0.1), 999)
    np.testing.assert_allclose(rates[-1], 0.1, atol=1e-4)


def test_an_update_is_optax_adamws():
    params = {"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4)}
    ours = OptimizerParams(weight_decay=0.3)
    direction = adamw_direction(ours)
    adamw = optax.adamw(0.01, ours.b1, ours.b2, ours.eps, weight_decay=0.3)
    state, expected_state = direction.init(params), adamw.init(params)
    expected = params
    for seed in range(5):
        grads = {"kernel": jax.random.normal(jax.random.key(seed), (3, 4))}
        updates, state = direction.update(grads, state, params)
        params = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
        updates, expected_state = adamw.update(grads, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        np.testing.assert_allclose(params["kernel"], expected["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    ("decayed", "names"),
    [
        ("all", {"kernel", "bias", "scale", "embedding", "positions"}),
        ("matrices", {"kernel", "embedding"}),
        ("kernels", {"kernel"}),
    ],
)
def test_what_weight_decay_is_for(config, decayed, names):
    model = config.model.model_copy(update={"positions": "learned", "mlp_bias": True})
    optimizer = OptimizerParams(weight_decay=0.5, weight_decay_on=decayed)
    whole = config.model_copy(update={"model": model, "optimizer": optimizer})
    params = make_steps(whole, vocab_size=400, mesh=make_mesh(1)).init(0).params
    ones = jax.tree.map(jnp.ones_like, params)
    direction = adamw_direction(optimizer)
    updates, _ = direction.update(jax.tree.map(jnp.zeros_like, ones), direction.init(ones), ones)
    moved = {
        jax.tree_util.keystr(path[-1:], simple=True)
        for path, leaf in jax.tree_util.tree_leaves_with_path(updates)
        if np.any(leaf)
    }
    assert moved == names


def test_gradients_are_clipped_by_their_global_norm():
    ours = OptimizerParams(grad_clip_norm=0.5)
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    direction = adamw_direction(ours)
    plain = adamw_direction(OptimizerParams())
    state, plain_state = direction.init(params), plain.init(params)
    # Adam's first update hides a factor of the gradients; those that follow do not.
    for size in (0.1, 3.0, 0.2):
        grads = {"a": jnp.full(3, size), "b": jnp.full(2, -size)}
        norm = float(optax.global_norm(grads))
        clipped = jax.tree.map(lambda leaf, norm=norm: leaf * min(1.0, 0.5 / norm), grads)
        updates, state = direction.update(grads, state, params)
        expected, plain_state = plain.update(clipped, plain_state, params)
        np.testing.assert_allclose(updates["a"], expected["a"], rtol=1e-6)
        np.testing.assert_allclose(updates["b"], expected["b"], rtol=1e-6)


@pytest.mark.optimized
def test_measuring_changes_nothing_of_the_update(config):
    steps = make_steps(config, vocab_size=400, mesh=make_mesh(1))
    rows = np.random.default_rng(0).integers(0, 400, (8, 17)).astype(np.int32)
    plain, plain_output = steps.train(steps.init(0), rows, np.float32(0.01), None)
    measured, output = steps.train_and_measure(steps.init(0), rows, np.float32(0.01), None)
    assert plain_output.unit_use is None
    assert output.unit_use[0].used.shape == (2, 16)
    np.testing.assert_allclose(plain_output.loss, output.loss, rtol=1e-6)
    for one, other in zip(
        jax.tree.leaves(plain.params), jax.tree.leaves(measured.params), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_an_evaluation_is_a_mean_over_each_sequence(config):
    steps = make_steps(config, vocab_size=400, mesh=make_mesh(1))
    rows = np.random.default_rng(0).integers(0, 400, (8, 17)).astype(np.int32)
    params = steps.init(0).params
    output = steps.evaluate(params, rows, None)
    model = Transformer(config.model, vocab_size=400, max_len=16, rngs=nnx.Rngs(0))
    nnx.update(model, params)
    logits, targets = np.asarray(model(jnp.asarray(rows[:, :-1])), np.float64), rows[:, 1:]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss = -np.take_along_axis(log_probs, targets[..., None], -1)[..., 0].mean(axis=1)
    np.testing.assert_allclose(output.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(output.accuracy, (logits.argmax(-1) == targets).mean(axis=1))


def hidden_activations(model, tokens, unit_masks):
    """Those of each layer, one layer after the other."""
    x = model.embed(tokens) + sinusoidal_positions(tokens.shape[1], model.embed.features)
    masks = iter(unit_masks)
    for stack in model.stacks:
        graph, stacked = nnx.split(stack.blocks)
        for layer in range(stack.num_layers):
            block = nnx.merge(graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))
            x = x + block.attention(block.attention_norm(x))
            hidden = nnx.relu(block.mlp.up(block.mlp_norm(x))) * next(masks)
            x = x + block.mlp.down(hidden)
            yield np.asarray(hidden)


@pytest.mark.parametrize("num_devices", [1, 8])
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("kept_share", [(1, 1), (0.5, 0.5), (0.9, 0.2)], ids=str)
def test_the_units_use_is_that_of_the_models_activations(config, num_devices, remat, kept_share):
    """Against sections 2.1 and A.6 in NumPy, whole and compacted, of equal and unequal widths."""
    generator = np.random.default_rng(0)
    part = Compaction([generator.random(16) < share for share in kept_share], multiple_of=4)
    config = config.model_copy(update={"model": config.model.model_copy(update={"remat": remat})})
    config = config.with_mlp_dims(part.mlp_dims)
    steps = make_steps(config, vocab_size=400, mesh=make_mesh(num_devices))
    tokens = generator.integers(0, 400, (8, 17)).astype(np.int32)
    model = Transformer(config.model, vocab_size=400, max_len=16, rngs=nnx.Rngs(0))
    nnx.update(model, jax.device_get(steps.init(3).params))
    activations = list(hidden_activations(model, tokens[:, :-1], part.unit_masks))

    _, output = steps.train_and_measure(steps.init(3), tokens, np.float32(0.01), part.kept_units())
    # (stacks, layers of the stack, ...) to (layers, ...)
    use = jax.tree.map(lambda *stacks: np.concatenate(stacks), *output.unit_use)
    for layer, (hidden, positions) in enumerate(zip(activations, part.positions, strict=True)):
        counts = np.pad((hidden > 0).sum(axis=1), ((0, 0), (0, 1)))[:, positions]
        groups = (counts > 0).reshape(2, 4, 16).any(axis=1)
        np.testing.assert_array_equal(use.token_units[layer], counts.sum(axis=1))
        np.testing.assert_array_equal(use.sequence_units[layer], (counts > 0).sum(axis=1))
        np.testing.assert_array_equal(use.batch_units[layer], groups.sum(axis=1))
        np.testing.assert_array_equal(use.used[layer], groups[0])
        for sequence, frequency in zip(counts, use.use_frequency[layer], strict=True):
            used = np.mean(sequence > 0)
            rescaled = np.array(PERCENTILES) * used + 100 * (1 - used)
            np.testing.assert_allclose(frequency, np.percentile(sequence, rescaled) / 16, atol=1e-6)


def test_the_seed_decides_the_initial_parameters(config):
    steps = make_steps(config, vocab_size=400, mesh=make_mesh(1))
    leaves = [jax.tree.leaves(steps.init(seed).params) for seed in (0, 0, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True))


@pytest.mark.optimized
def test_the_initial_parameters_are_those_of_a_program_with_all_optimizations(config):
    steps = make_steps(config, vocab_size=400, mesh=make_mesh(1))
    whole = jax.jit(steps.init.__wrapped__)
    jax.tree.map(np.testing.assert_array_equal, steps.init(3), whole(3))


def test_mlp_kernels_are_lecun_normal():
    """Section 2.2: variance 1 / fan_in."""
    from relu_sparsity.params import ModelParams, RunConfig

    config = RunConfig(model=ModelParams(num_layers=1, emb_dim=64, num_heads=2, mlp_dim=4096))
    steps = make_steps(config, vocab_size=400, mesh=make_mesh(1))
    mlp = steps.init(0).params["stacks"][0]["blocks"]["mlp"]
    np.testing.assert_allclose(np.std(mlp["up"]["kernel"]), 64**-0.5, rtol=0.02)
    np.testing.assert_allclose(np.std(mlp["down"]["kernel"]), 4096**-0.5, rtol=0.02)


def test_of_equally_likely_tokens_the_first_counts():
    logits = jnp.asarray(np.random.default_rng(0).integers(0, 3, (4, 50, 6)), jnp.float32)
    for target in range(6):
        targets = jnp.full((4, 50), target)
        _, hits = token_losses(logits, targets)
        np.testing.assert_array_equal(hits, np.asarray(logits).argmax(-1) == target)

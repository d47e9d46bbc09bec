"""What the model must and must not let through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from relu_sparsity.model import (
    KeptUnits,
    Transformer,
    count_probes,
    sinusoidal_positions,
    split_by_stack,
    use_by_stack,
)
from relu_sparsity.params import ModelParams
from relu_sparsity.sparsity import mean_use

SMALL = ModelParams(num_layers=3, emb_dim=16, num_heads=2, mlp_dim=24, mlp_bias=True)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (4, 12)), jnp.int32)
CHOICES = [
    {},
    {"positions": "learned"},
    {"tie_embeddings": False},
    {"norm": "rmsnorm"},
    {"norm_position": "post"},
    {"scale_embeddings": True},
    {"mlp_bias": False},
    {"attention_bias": True},
    {"remat": True},
    {"dtype": "bfloat16"},
]


def build(params=SMALL, mlp_dims=None, seed=0):
    params = params.model_copy(update={"mlp_dim": mlp_dims or params.mlp_dim})
    return Transformer(params, vocab_size=50, max_len=12, rngs=nnx.Rngs(seed))


def measure(model, tokens, kept_units=None, *, group_size):
    """The units' use, without a training step."""
    widths = [stack.mlp_dim for stack in model.stacks for _ in range(stack.num_layers)]
    count = jax.jit(jax.grad(lambda probes: model(tokens, kept_units, probes).sum()))
    counts = count(count_probes(widths, len(tokens)))
    return use_by_stack(counts, kept_units, seq_len=tokens.shape[1], group_size=group_size)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_choice_gives_float32_logits_and_gradients(choice):
    model = build(SMALL.model_copy(update=choice))
    logits = model(TOKENS)
    assert logits.shape == (4, 12, 50)
    assert logits.dtype == jnp.float32
    grads = nnx.jit(nnx.grad(lambda model: jax.nn.logsumexp(model(TOKENS)).mean()))(model)
    for path, grad in nnx.to_flat_state(grads):
        assert np.isfinite(grad[...]).all(), path
        assert np.abs(grad[...]).max() > 0, path
        assert grad.dtype == jnp.float32, path


def plain_logits(model, params, tokens):
    """The forward pass, a layer at a time, with JAX's own attention."""
    shape, heads = (*tokens.shape, params.emb_dim), (*tokens.shape, params.num_heads, -1)
    embedding = model.embed.embedding[...]
    fixed = params.positions == "sinusoidal"
    x = embedding[tokens] * (params.emb_dim**0.5 if params.scale_embeddings else 1)
    x += sinusoidal_positions(*shape[1:]) if fixed else model.positions[...]
    graph, stacked = nnx.split(model.stacks[0].blocks)
    for layer in range(params.num_layers):
        block = nnx.merge(graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))

        def attention(x, block=block):
            parts = jnp.split(block.attention.query_key_value(x), 3, axis=-1)
            mixed = jax.nn.dot_product_attention(
                *(part.reshape(heads) for part in parts), is_causal=True
            )
            return block.attention.out(mixed.reshape(shape))

        def mlp(x, block=block):
            return block.mlp.down(jnp.maximum(block.mlp.up(x), 0))

        for norm, part in ((block.attention_norm, attention), (block.mlp_norm, mlp)):
            x = norm(x + part(x)) if params.norm_position == "post" else x + part(norm(x))
    x = model.final_norm(x)
    return x @ embedding.T if params.tie_embeddings else model.logits(x)


@pytest.mark.parametrize(
    "choice", [each for each in CHOICES if {"remat", "dtype"}.isdisjoint(each)], ids=str
)
def test_every_choice_is_its_equation(choice):
    params = SMALL.model_copy(update=choice)
    model = build(params)
    np.testing.assert_allclose(model(TOKENS), plain_logits(model, params, TOKENS), atol=1e-5)
    # The parts that it takes from the model itself are those that were chosen.
    block = model.stacks[0].blocks
    norm = {"layernorm": nnx.LayerNorm, "rmsnorm": nnx.RMSNorm}[params.norm]
    for part in (block.attention_norm, block.mlp_norm, model.final_norm):
        assert type(part) is norm
    for part in (block.mlp.up, block.mlp.down):
        assert (part.bias is not None) == params.mlp_bias
    for part in (block.attention.query_key_value, block.attention.out):
        assert (part.bias is not None) == params.attention_bias


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_goes_from_layer_to_layer_has_the_type_of_the_computation(dtype):
    model = build(SMALL.model_copy(update={"dtype": dtype}))
    jaxpr = jax.make_jaxpr(model)(TOKENS).jaxpr
    (scan,) = (each for each in jaxpr.eqns if each.primitive.name == "scan")
    assert scan.outvars[0].aval.dtype == dtype


@pytest.mark.parametrize("remat", [False, True])
def test_blocks_are_computed_again_only_where_asked_for(remat):
    model = build(SMALL.model_copy(update={"remat": remat}))
    jaxpr = jax.make_jaxpr(model)(TOKENS).jaxpr
    (scan,) = (each for each in jaxpr.eqns if each.primitive.name == "scan")
    inner = {each.primitive.name for each in scan.params["jaxpr"].jaxpr.eqns}
    assert bool(inner & {"checkpoint", "remat", "remat2"}) == remat


def test_embeddings_start_as_large_as_asked():
    params = SMALL.model_copy(update={"embedding_init_std": 0.5, "positions": "learned"})
    model = Transformer(params, vocab_size=2000, max_len=2000, rngs=nnx.Rngs(0))
    for start in (model.embed.embedding, model.positions):
        np.testing.assert_allclose(np.std(start[...]), 0.5, rtol=0.03)


def test_logits_are_causal():
    model = build()

    def logits_of_embedded(position, shift):
        tokens = TOKENS.at[:, position].add(shift) % 50
        return model(tokens)

    for position in (1, 6, 11):
        before, after = logits_of_embedded(position, 0), logits_of_embedded(position, 7)
        np.testing.assert_array_equal(before[:, :position], after[:, :position])
        assert np.abs(before[:, position:] - after[:, position:]).max() > 1e-4


def test_scanned_stack_equals_a_stack_per_layer():
    # A ragged model is a scan per layer; equal parameters must give equal logits.
    uniform = build()
    ragged = build(mlp_dims=(24, 25, 24))
    assert [stack.num_layers for stack in ragged.stacks] == [1, 1, 1]
    state = nnx.state(uniform)
    per_layer = [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], state["stacks"][0]) for i in range(3)
    ]
    model = build()
    nnx.update(model, state)
    stacks = []
    for layer in per_layer:
        stack_graph = nnx.graphdef(build(SMALL.model_copy(update={"num_layers": 1})).stacks[0])
        stacks.append(nnx.merge(stack_graph, layer))
    model.stacks = nnx.List(stacks)
    np.testing.assert_allclose(model(TOKENS), uniform(TOKENS), atol=1e-5)


def test_layers_can_have_different_widths():
    model = build(mlp_dims=(24, 24, 8))
    assert [(stack.num_layers, stack.mlp_dim) for stack in model.stacks] == [(2, 24), (1, 8)]
    uses = measure(model, TOKENS, group_size=2)
    assert [use.used.shape for use in uses] == [(2, 24), (1, 8)]
    assert split_by_stack(["a", "b", "c"], [24, 24, 8]) == [["a", "b"], ["c"]]


def test_masked_units_contribute_nothing_and_get_no_gradient():
    model = build()
    kept = np.ones((3, 24), np.float32)
    kept[0, :10] = kept[1, 5:] = kept[2, ::2] = 0
    masks = [KeptUnits(mask=jnp.asarray(kept))]
    logits = model(TOKENS, masks)
    uses = measure(model, TOKENS, masks, group_size=4)
    assert not np.asarray(uses[0].used)[kept == 0].any()

    grads = nnx.jit(nnx.grad(lambda model: jax.nn.logsumexp(model(TOKENS, masks)).mean()))(model)
    mlp = grads["stacks"][0]["blocks"]["mlp"]
    up = np.moveaxis(np.asarray(mlp["up"]["kernel"][...]), 1, 2)
    down = np.asarray(mlp["down"]["kernel"][...])
    bias = np.asarray(mlp["up"]["bias"][...])
    for grad in (up, down, bias):
        assert np.abs(grad[kept == 0]).max() == 0
        assert np.abs(grad[kept == 1]).max() > 0

    # Whatever a masked unit's weights are, the logits stay the same.
    blocks = model.stacks[0].blocks.mlp
    noise = jax.random.normal(jax.random.key(1), blocks.up.kernel.shape)
    blocks.up.kernel[...] += noise * (1 - kept[:, None, :])
    np.testing.assert_array_equal(model(TOKENS, masks), logits)
    assert np.abs(model(TOKENS) - logits).max() > 1e-3


def test_masking_equals_leaving_the_units_out():
    wide = build(ModelParams(num_layers=1, emb_dim=16, num_heads=2, mlp_dim=24))
    narrow = build(ModelParams(num_layers=1, emb_dim=16, num_heads=2, mlp_dim=7))
    kept = np.zeros((1, 24), np.float32)
    kept[0, :7] = 1
    first_units = jax.tree.map(
        lambda wide, narrow: wide[tuple(map(slice, narrow.shape))],
        nnx.state(wide),
        nnx.state(narrow),
    )
    nnx.update(narrow, first_units)
    masked = wide(TOKENS, [KeptUnits(mask=jnp.asarray(kept))])
    np.testing.assert_allclose(narrow(TOKENS), masked, atol=1e-5)


def test_sinusoidal_positions_have_the_closed_form():
    positions = sinusoidal_positions(9, 8)
    assert positions.shape == (9, 8)
    np.testing.assert_allclose(positions[3, 1], np.sin(3 / 10000 ** (2 / 8)), rtol=1e-6)
    np.testing.assert_allclose(positions[3, 5], np.cos(3 / 10000 ** (2 / 8)), rtol=1e-6)


def test_use_at_initialization_falls_with_depth_as_in_table_2(english_tokens):
    """Table 2, first column, at the paper's d_model and tokens and an eighth of its width."""
    paper = np.array([97.0, 93.2, 90.9, 89.0, 88.2, 87.5])
    params = ModelParams(num_layers=6, emb_dim=512, num_heads=8, mlp_dim=4096)

    @jax.jit
    def use_at_initialization(seed):
        model = Transformer(params, vocab_size=32000, max_len=512, rngs=nnx.Rngs(seed))
        uses = measure(model, jnp.asarray(english_tokens), group_size=16)
        return mean_use(uses[0], seq_len=512)["batch_use"]

    use = 100 * np.mean([use_at_initialization(jax.random.key(seed)) for seed in range(2)], axis=0)
    assert (np.diff(use) < 1).all(), use
    assert use[0] - use[-1] > 5, use
    np.testing.assert_allclose(use, paper, atol=4.0)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_logits_are_not_rounded_to_the_type_of_the_computation(tie_embeddings):
    params = ModelParams(
        num_layers=1, emb_dim=32, num_heads=2, mlp_dim=16,
        tie_embeddings=tie_embeddings, dtype="bfloat16",
    )  # fmt: skip
    model = Transformer(params, vocab_size=512, max_len=8, rngs=nnx.Rngs(0))
    logits = model(jnp.arange(16).reshape(2, 8))
    assert (logits == logits.astype(jnp.bfloat16)).mean() < 0.01

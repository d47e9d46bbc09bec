"""FLOPs from shapes, against the matrix products that JAX really traces."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from relu_sparsity.flops import forward_flops_per_token, training_flops
from relu_sparsity.model import Transformer
from relu_sparsity.params import ModelParams, RunConfig


def traced_flops(jaxpr):
    """FLOPs of all matrix products, those of inner functions and of every turn of a scan too.

    Of alternatives (one per platform) each has the same, and one is run.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        inner = [traced_flops(each) for each in jax.core.jaxprs_in_params(equation.params)]
        if equation.primitive.name == "scan":
            total += equation.params["length"] * sum(inner)
        elif equation.primitive.name == "cond":
            assert len(set(inner)) == 1
            total += inner[0]
        else:
            total += sum(inner)
    return total


@pytest.mark.parametrize("mlp_dims", [[32, 32, 32], [40, 24, 24, 8]])
@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_equals_what_is_traced(mlp_dims, tie_embeddings):
    params = ModelParams(
        num_layers=len(mlp_dims),
        emb_dim=16,
        num_heads=2,
        mlp_dim=mlp_dims,
        tie_embeddings=tie_embeddings,
    )
    model = Transformer(params, vocab_size=300, max_len=12, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    tokens = jnp.zeros((2, 12), jnp.int32)

    def loss(state):
        return nnx.merge(graph, state)(tokens)[0].sum()

    per_token = forward_flops_per_token(emb_dim=16, mlp_dims=mlp_dims, seq_len=12, vocab_size=300)
    assert traced_flops(jax.make_jaxpr(loss)(state).jaxpr) == 24 * per_token
    assert traced_flops(jax.make_jaxpr(jax.grad(loss))(state).jaxpr) == 3 * 24 * per_token


def test_a_run_is_its_steps_and_its_evaluations():
    config = RunConfig.model_validate(
        {
            "model": {"emb_dim": 16, "num_heads": 2},
            "tokenizer": {"vocab_size": 300},
            "optimizer": {"warmup_steps": 1},
            "training": {
                "num_steps": 100,
                "seq_len": 12,
                "per_device_batch_size": 2,
                "global_batch_size": 4,
                "eval_every_steps": 40,
                "eval_sequences": 7,
            },
            "metrics": {"convergence_window": 10},
        }
    )
    per_token = forward_flops_per_token(emb_dim=16, mlp_dims=[8], seq_len=12, vocab_size=300)
    whole = training_flops(config, [8], first_step=0, last_step=100)
    assert whole == (3 * 100 * 4 + 4 * 7) * 12 * per_token, "evaluated at 0, 40, 80, 100"
    half = training_flops(config, [8], first_step=40, last_step=100)
    assert half == (3 * 60 * 4 + 3 * 7) * 12 * per_token

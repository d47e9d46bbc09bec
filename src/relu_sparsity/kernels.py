"""What is written for a backend's sake, and computes what the plain form would.

Each was measured with JAX 0.10.2; docs/performance.md tells how much it saves.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from relu_sparsity.sparsity import token_counts


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def contract(
    x: Float[Array, "batch seq features"],
    kernel: Float[Array, "features out"],
    preferred_element_type: Any = None,
) -> Float[Array, "batch seq out"]:
    """`x @ kernel`, with a kernel gradient that is fast on every platform.

    On CPU XLA hands a product to its fast library only if the left operand's last axis is
    contracted. The gradient's natural form contracts the first, and takes 2 to 10 times as long.
    Measured on x86-64. It can go when XLA gives every form of a product to its fast library.
    """
    return jnp.matmul(x, kernel, preferred_element_type=preferred_element_type)


def _contract_forward(x, kernel, preferred_element_type):
    return contract(x, kernel, preferred_element_type), (x, kernel)


def _contract_backward(preferred_element_type, residuals, output_gradient):
    x, kernel = residuals
    output_gradient = output_gradient.astype(x.dtype)
    kernel_gradient = jax.lax.platform_dependent(
        x.reshape(-1, x.shape[-1]),
        output_gradient.reshape(-1, output_gradient.shape[-1]),
        cpu=_kernel_gradient_of_transposed,
        default=lambda x, output_gradient: x.T @ output_gradient,
    )
    return output_gradient @ kernel.T, kernel_gradient


def _kernel_gradient_of_transposed(
    x: Float[Array, "rows features"], output_gradient: Float[Array, "rows out"]
) -> Float[Array, "features out"]:
    """Transposes the narrower operand; barriers keep XLA from undoing it."""
    barrier = jax.lax.optimization_barrier
    if x.shape[1] <= output_gradient.shape[1]:
        return barrier(x.T) @ output_gradient
    return barrier(barrier(output_gradient.T) @ x).T


contract.defvjp(_contract_forward, _contract_backward)


def dot_general(x, kernel, *_: Any, preferred_element_type: Any = None, **__: Any):
    """What `nnx.Linear` asks for: it contracts the last axis with the first."""
    return contract(x, kernel, preferred_element_type)


@jax.custom_vjp
def probed(
    hidden: Float[Array, "batch seq mlp"], probe: Float[Array, "batch mlp"]
) -> Float[Array, "batch seq mlp"]:
    """`hidden`, whose token counts are the gradient for `probe`, an array of zeros.

    The backward pass has the hidden activations in memory, or recomputes them. In the forward pass
    XLA takes them straight into the next product; to count them there it would have to write them
    to memory first, and read them twice.
    Measured on x86-64 and in programs compiled for a v2-32. It can go when XLA counts in
    the product that makes the activations.
    """
    return hidden


def _probed_forward(hidden, probe):
    return hidden, hidden


def _probed_backward(hidden, output_gradient):
    return output_gradient, token_counts(hidden).astype(jnp.float32)


probed.defvjp(_probed_forward, _probed_backward)


def causal_attention(
    query: Float[Array, "batch seq heads dim"],
    key: Float[Array, "batch seq heads dim"],
    value: Float[Array, "batch seq heads dim"],
) -> Float[Array, "batch seq heads dim"]:
    """Causal dot-product attention, normalized after the values are mixed.

    The softmax's gradient then sums over `dim` instead of over `seq` keys, which XLA does on CPU
    several times faster than the gradient of `jax.nn.dot_product_attention`.
    Measured on x86-64. It can go when that function is as fast there.
    """
    query, key, value = (jnp.moveaxis(heads, 2, 1) for heads in (query, key, value))
    length, dim = query.shape[-2:]
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(np.tri(length, dtype=bool), scores / np.sqrt(dim), -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum(
        "bhqk,bhkd->bhqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    mixed = mixed / weights.sum(axis=-1, keepdims=True)
    return jnp.moveaxis(mixed, 1, 2).astype(value.dtype)


def options_of_init(platform: str) -> dict[str, int] | None:
    """XLA's options for the program that makes the first parameters, which runs once.

    Its random numbers are long chains of operations, on which LLVM spends more than half of the
    time. With less optimization the same bits come out after 1.1 instead of 2.4 s.
    Measured on x86-64. It can go when XLA compiles random numbers as fast there.
    """
    return {"xla_backend_optimization_level": 1} if platform == "cpu" else None

"""The decoder-only ReLU Transformer (section 2.2).

What the paper leaves open is a field of `ModelParams`. Consecutive layers of one width are one
scan over stacked parameters, so a deep model compiles as fast as a shallow one; a model whose
layers all differ in width (round 2) is a scan per layer.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from relu_sparsity.kernels import causal_attention, dot_general, probed
from relu_sparsity.params import ModelParams
from relu_sparsity.sparsity import UnitUse, use_from_counts

_T = TypeVar("_T")


class KeptUnits(NamedTuple):
    """The hidden units of a stack that a mask keeps.

    Attributes:
      mask: 1 for a unit that is kept, 0 for one that stays zero; None keeps all.
      positions: Where the stack is a part of a wider, masked one: for each unit of the wider one
        its index in the stack, or the stack's width where it is left out. None where it is whole.
    """

    mask: Float[Array, "*layers mlp"] | None = None
    positions: Int[Array, "*layers whole"] | None = None


_linear = partial(nnx.Linear, dot_general=dot_general)


class Attention(nnx.Module):
    """Causal multi-head self-attention; the softmax is taken in float32."""

    def __init__(self, params: ModelParams, *, rngs: nnx.Rngs) -> None:
        linear = partial(_linear, use_bias=params.attention_bias, dtype=params.dtype, rngs=rngs)
        self.num_heads = params.num_heads
        self.query_key_value = linear(params.emb_dim, 3 * params.emb_dim)
        self.out = linear(params.emb_dim, params.emb_dim)

    def __call__(self, x: Float[Array, "batch seq emb"]) -> Float[Array, "batch seq emb"]:
        batch, seq, emb = x.shape
        heads = self.query_key_value(x).reshape(batch, seq, 3, self.num_heads, -1)
        query, key, value = jnp.moveaxis(heads, 2, 0)
        mixed = causal_attention(query, key, value)
        return self.out(mixed.reshape(batch, seq, emb))


class MLP(nnx.Module):
    """Two dense layers with a ReLU between them; kernels are LeCun-normal (section 2.2)."""

    def __init__(self, params: ModelParams, mlp_dim: int, *, rngs: nnx.Rngs) -> None:
        linear = partial(
            _linear,
            use_bias=params.mlp_bias,
            dtype=params.dtype,
            kernel_init=nnx.initializers.lecun_normal(),
            rngs=rngs,
        )
        self.up = linear(params.emb_dim, mlp_dim)
        self.down = linear(mlp_dim, params.emb_dim)

    def __call__(
        self,
        x: Float[Array, "batch seq emb"],
        unit_mask: Float[Array, " mlp"] | None = None,
        probe: Float[Array, "batch mlp"] | None = None,
    ) -> Float[Array, "batch seq emb"]:
        """Masks the hidden activations after the ReLU; `probe` counts what is left of them."""
        hidden = nnx.relu(self.up(x))
        if unit_mask is not None:
            hidden = hidden * unit_mask.astype(hidden.dtype)
        if probe is not None:
            hidden = probed(hidden, probe)
        return self.down(hidden)


class Block(nnx.Module):
    """A Transformer block, normalized before its parts (pre) or after them (post)."""

    def __init__(self, params: ModelParams, mlp_dim: int, *, rngs: nnx.Rngs) -> None:
        self.norm_position = params.norm_position
        self.attention_norm = _norm(params, rngs)
        self.attention = Attention(params, rngs=rngs)
        self.mlp_norm = _norm(params, rngs)
        self.mlp = MLP(params, mlp_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch seq emb"],
        kept: KeptUnits,
        probe: Float[Array, "batch mlp"] | None,
    ) -> Float[Array, "batch seq emb"]:
        if self.norm_position == "post":
            x = self.attention_norm(x + self.attention(x))
            return self.mlp_norm(x + self.mlp(x, kept.mask, probe))
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x), kept.mask, probe)


class Stack(nnx.Module):
    """Consecutive blocks of one width, their parameters stacked along a leading axis."""

    def __init__(
        self, params: ModelParams, num_layers: int, mlp_dim: int, *, rngs: nnx.Rngs
    ) -> None:
        @nnx.split_rngs(splits=num_layers)
        @nnx.vmap(in_axes=0, out_axes=0)
        def create(rngs: nnx.Rngs) -> Block:
            return Block(params, mlp_dim, rngs=rngs)

        self.num_layers = num_layers
        self.mlp_dim = mlp_dim
        self.remat = params.remat
        self.blocks = create(rngs)

    def __call__(
        self,
        x: Float[Array, "batch seq emb"],
        kept: KeptUnits,
        probes: Float[Array, "layers batch mlp"] | None,
    ) -> Float[Array, "batch seq emb"]:
        graph, stacked = nnx.split(self.blocks)

        def apply_block(x, layer):
            state, kept_here, probe = layer
            return nnx.merge(graph, state)(x, kept_here, probe), None

        if self.remat:
            # XLA unrolls a scan of one layer, and would then share what is to be recomputed.
            apply_block = jax.checkpoint(apply_block, prevent_cse=self.num_layers == 1)
        x, _ = jax.lax.scan(apply_block, x, (stacked, kept, probes))
        return x


class Transformer(nnx.Module):
    """The language model.

    Args:
      params: Shape and choices.
      vocab_size: Tokens in the vocabulary.
      max_len: The longest sequence.
      rngs: Where the initial parameters are drawn from.
    """

    def __init__(
        self,
        params: ModelParams,
        *,
        vocab_size: int,
        max_len: int,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = params.dtype
        self.embedding_scale = params.emb_dim**0.5 if params.scale_embeddings else 1.0
        embedding_init = nnx.initializers.normal(params.embedding_init_std)
        self.embed = nnx.Embed(
            vocab_size, params.emb_dim, embedding_init=embedding_init, dtype="float32", rngs=rngs
        )
        self.positions = (
            nnx.Param(embedding_init(rngs.params(), (max_len, params.emb_dim)))
            if params.positions == "learned"
            else None
        )
        self.stacks = nnx.List(
            [
                Stack(params, len(list(layers)), mlp_dim, rngs=rngs)
                for mlp_dim, layers in itertools.groupby(params.mlp_dims)
            ]
        )
        self.final_norm = _norm(params, rngs)
        self.logits = (
            None
            if params.tie_embeddings
            else _linear(
                params.emb_dim,
                vocab_size,
                use_bias=False,
                dtype=params.dtype,
                preferred_element_type=jnp.float32,
                rngs=rngs,
            )
        )

    def __call__(
        self,
        tokens: Int[Array, "batch seq"],
        kept_units: Sequence[KeptUnits] | None = None,
        probes: Sequence[Float[Array, "_layers batch _mlp"]] | None = None,
    ) -> Float[Array, "batch seq vocab"]:
        """Predicts the next token at every position.

        Args:
          tokens: Token ids.
          kept_units: The hidden units that each stack of equally wide layers keeps; None keeps
            all. See `split_by_stack`.
          probes: What `count_probes` gives. The gradients for them, of anything that depends on
            the logits, are the token counts of the hidden units; None counts nothing.

        Returns:
          The logits in float32.
        """
        length = tokens.shape[1]
        positions = (
            sinusoidal_positions(length, self.embed.features)
            if self.positions is None
            else self.positions[:length]
        )
        x = (self.embedding_scale * self.embed(tokens) + positions).astype(self.dtype)
        for index, stack in enumerate(self.stacks):
            x = stack(
                x,
                kept_units[index] if kept_units else KeptUnits(),
                probes[index] if probes else None,
            )
        x = self.final_norm(x)
        if self.logits is None:
            kernel = self.embed.embedding[...].astype(self.dtype)
            return jnp.einsum("bse,ve->bsv", x, kernel, preferred_element_type=jnp.float32)
        return self.logits(x)


def split_by_stack(values: Sequence[_T], mlp_dims: Sequence[int]) -> list[list[_T]]:
    """Groups per-layer values as the model groups its layers: by runs of one width."""
    layers = iter(values)
    return [
        list(itertools.islice(layers, len(list(group)))) for _, group in itertools.groupby(mlp_dims)
    ]


def masks_by_stack(
    unit_masks: Sequence[Bool[np.ndarray, " _mlp"]], mlp_dims: Sequence[int]
) -> list[KeptUnits]:
    """What each stack of a whole model keeps, from the masks of its layers."""
    return [
        KeptUnits(mask=jnp.stack(layers).astype(jnp.float32))
        for layers in split_by_stack(unit_masks, mlp_dims)
    ]


def count_probes(mlp_dims: Sequence[int], batch: int) -> list[Float[Array, "_layers batch _mlp"]]:
    """Zeros for each stack, for `Transformer` to count the tokens that use its hidden units."""
    stacks = split_by_stack(mlp_dims, mlp_dims)
    return [jnp.zeros((len(widths), batch, widths[0]), jnp.float32) for widths in stacks]


def use_by_stack(
    counts: Sequence[Float[Array, "_layers batch _mlp"]],
    kept_units: Sequence[KeptUnits] | None,
    *,
    seq_len: int,
    group_size: int,
) -> list[UnitUse]:
    """The units' use for each stack.

    Args:
      counts: The gradients for what `count_probes` gave.
      kept_units: The hidden units that each stack keeps; None keeps all.
      seq_len: Tokens in a sequence.
      group_size: Sequences in a device batch. It divides `batch`.
    """

    def use(layer):
        counts, positions = layer
        counts = counts.astype(jnp.int32)
        if positions is not None:
            # A unit that is left out is never used.
            counts = jnp.pad(counts, ((0, 0), (0, 1)))[:, positions]
        return use_from_counts(counts, seq_len=seq_len, group_size=group_size)

    kept_units = kept_units or [KeptUnits()] * len(counts)
    return [
        jax.lax.map(use, (stack, kept.positions))
        for stack, kept in zip(counts, kept_units, strict=True)
    ]


def sinusoidal_positions(length: int, emb_dim: int) -> Float[np.ndarray, "seq emb"]:
    """Fixed sinusoidal position encodings.

    References:
      Vaswani et al., `Attention Is All You Need`, 2017, section 3.5.
    """
    frequency = np.exp(-np.log(10000.0) * np.arange(0, emb_dim, 2) / emb_dim)
    angles = np.arange(length)[:, None] * frequency
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def _norm(params: ModelParams, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm:
    norm = {"layernorm": nnx.LayerNorm, "rmsnorm": nnx.RMSNorm}[params.norm]
    return norm(params.emb_dim, dtype=params.dtype, rngs=rngs)

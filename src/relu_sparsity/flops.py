"""How many floating-point operations training takes, from shapes alone.

Only matrix products count, a product and a sum as two operations, as is usual for model FLOPs;
what rematerialization computes again does not count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from relu_sparsity.params import RunConfig


def forward_flops_per_token(
    *, emb_dim: int, mlp_dims: Sequence[int], seq_len: int, vocab_size: int
) -> float:
    """FLOPs of the model's forward pass, per token.

    References:
      Kaplan et al., `Scaling Laws for Neural Language Models`, 2020, Table 1. Attention is counted
      in full, though half of it is masked, because it is computed in full.
    """
    attention = 4 * emb_dim**2 + 2 * seq_len * emb_dim
    layers = sum(attention + 2 * emb_dim * mlp_dim for mlp_dim in mlp_dims)
    return 2.0 * (layers + emb_dim * vocab_size)


def described_flops_per_token(config: Mapping[str, Any], mlp_dims: Sequence[int]) -> float:
    """FLOPs of the forward pass, per token, of the run whose run.json holds `config`.

    Args:
      config: The key `config` of run.json.
      mlp_dims: The widths that count: all, or those of the units that were trained.

    Raises:
      KeyError: `config` is not what training writes.
    """
    return forward_flops_per_token(
        emb_dim=config["model"]["emb_dim"],
        mlp_dims=mlp_dims,
        seq_len=config["training"]["seq_len"],
        vocab_size=config["tokenizer"]["vocab_size"],
    )


def training_flops(
    config: RunConfig, mlp_dims: Sequence[int], *, first_step: int, last_step: int
) -> float:
    """FLOPs of training from `first_step` to `last_step`, with its evaluations.

    The backward pass of a matrix product is two products of its size.
    """
    training = config.training
    per_token = forward_flops_per_token(
        emb_dim=config.model.emb_dim,
        mlp_dims=mlp_dims,
        seq_len=training.seq_len,
        vocab_size=config.tokenizer.vocab_size,
    )
    # One at every multiple of eval_every_steps, and one at the end.
    every = training.eval_every_steps
    evaluations = math.ceil(last_step / every) - math.ceil(first_step / every) + 1
    sequences = 3 * (last_step - first_step) * training.global_batch_size
    sequences += evaluations * training.eval_sequences
    return sequences * training.seq_len * per_token

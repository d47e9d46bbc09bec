"""What needs no training: the held-out loss of how often tokens and pairs of tokens occur.

A model whose loss is not clearly below that of unigrams has learned nothing but which tokens are
common, and no verdict should rest on it.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Int32
from scipy import sparse

from relu_sparsity.data.tokenizer import Tokenizer

# As many tokens of training text are enough for pairs; C4 has 10,000 times as many.
MAX_TOKENS = 20_000_000


def ngram_losses(
    documents: Iterable[str],
    heldout: Sequence[Int32[np.ndarray, "batch seq_plus_1"]],
    tokenizer: Tokenizer,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, float]:
    """The mean loss of predicting each held-out token from frequencies, in nats.

    Args:
      documents: Training text.
      heldout: Rows of tokens; `row[1:]` is predicted, from `row[:-1]`.
      tokenizer: The tokenizer.
      max_tokens: Of the first documents, frequencies are taken of about so many tokens.

    Returns:
      `unigram_loss`, of frequencies with one added to each count, and `bigram_loss`, of pairs,
      interpolated with the former by Witten and Bell's rule: a token that many different ones
      follow leaves more for those that have not been seen to follow it.

    References:
      Witten and Bell, `The zero-frequency problem`, 1991, method C.
    """
    stream = _tokens(documents, tokenizer, max_tokens)
    size = tokenizer.vocab_size
    counts = np.bincount(stream, minlength=size)
    unigrams = (counts + 1) / (counts.sum() + size)
    pairs = sparse.coo_array(
        (np.ones(len(stream) - 1), (stream[:-1], stream[1:])), shape=(size, size)
    ).tocsr()
    seen, followers = pairs.sum(axis=1), np.diff(pairs.indptr)
    rows = np.concatenate(heldout)
    before, after = rows[:, :-1].ravel(), rows[:, 1:].ravel()
    of_pair = np.asarray(pairs[before, after]).ravel()
    weight = np.maximum(followers[before], 1)
    bigrams = (of_pair + weight * unigrams[after]) / (seen[before] + weight)
    return {
        "unigram_loss": float(-np.log(unigrams[after]).mean()),
        "bigram_loss": float(-np.log(bigrams).mean()),
    }


def _tokens(
    documents: Iterable[str], tokenizer: Tokenizer, max_tokens: int
) -> Int[np.ndarray, " tokens"]:
    taken: list[np.ndarray] = []
    total = 0
    for document in documents:
        taken.append(tokenizer.encode(document))
        total += len(taken[-1])
        if total >= max_tokens:
            break
    return np.concatenate(taken)

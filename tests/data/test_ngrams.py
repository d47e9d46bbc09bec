"""Losses of frequencies, against their definitions."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from relu_sparsity.data.ngrams import ngram_losses


class Letters:
    """A vocabulary of letters."""

    vocab_size = 5

    def encode(self, text):
        return np.array(["abcd$".index(letter) for letter in text + "$"], np.int32)


TRAIN = ["abab", "abc", "d"]
HELDOUT = [np.array([[0, 1, 2, 4], [3, 3, 0, 1]], np.int32)]


def by_hand():
    stream = [token for text in TRAIN for token in Letters().encode(text)]
    counts, pairs = Counter(stream), Counter(itertools.pairwise(stream))
    unigram = {token: (counts[token] + 1) / (len(stream) + 5) for token in range(5)}
    uni, bi = [], []
    for row in HELDOUT[0].tolist():
        for before, after in itertools.pairwise(row):
            seen = sum(count for (first, _), count in pairs.items() if first == before)
            kinds = max(1, len({second for first, second in pairs if first == before}))
            uni.append(-math.log(unigram[after]))
            bi.append(-math.log((pairs[before, after] + kinds * unigram[after]) / (seen + kinds)))
    return np.mean(uni), np.mean(bi)


def test_losses_are_those_of_the_definition():
    losses = ngram_losses(TRAIN, HELDOUT, Letters())
    assert (losses["unigram_loss"], losses["bigram_loss"]) == pytest.approx(by_hand())
    assert losses["bigram_loss"] < losses["unigram_loss"]


def test_probabilities_add_up_to_one():
    every = [np.array([[before, after] for after in range(5)], np.int32) for before in range(5)]
    for rows in every:
        each = [ngram_losses(TRAIN, [row[None]], Letters()) for row in rows]
        for name in ("unigram_loss", "bigram_loss"):
            assert sum(math.exp(-losses[name]) for losses in each) == pytest.approx(1)


def test_frequencies_are_of_the_first_tokens_where_there_are_many():
    few = ngram_losses(["ab", "cd"], HELDOUT, Letters(), max_tokens=2)
    assert few == ngram_losses(["ab"], HELDOUT, Letters())

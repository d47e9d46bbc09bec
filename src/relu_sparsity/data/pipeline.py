"""Documents to batches of packed token rows, with Grain.

Documents are read and tokenized in the calling thread, or ahead of it in threads of their own:
batches and states are the same to the bit, as a state counts what was taken, not what was read.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from jaxtyping import Int32

from relu_sparsity.data.sources import read_options
from relu_sparsity.data.tokenizer import Tokenizer
from relu_sparsity.errors import UserError


class TokenBatches(Iterator[Int32[np.ndarray, "local_batch seq_plus_1"]]):
    """An endless iterator over batches whose position can be saved and restored exactly.

    Args:
      streams: The packed streams that this process reads, by their number, each of batches of rows.
      num_streams: How many there are for all processes.
      rows: Which rows, one stream below the other, are this process's.
    """

    def __init__(self, streams: Mapping[int, grain.IterDataset], num_streams: int, rows: slice):
        self._streams = {number: iter(stream) for number, stream in streams.items()}
        self._num_streams = num_streams
        self._rows = rows

    def __iter__(self) -> "TokenBatches":
        return self

    def __next__(self) -> Int32[np.ndarray, "local_batch seq_plus_1"]:
        return np.concatenate([next(stream) for stream in self._streams.values()])[self._rows]

    def get_state(self) -> dict[str, Any]:
        """Returns the position of every stream that this process reads, in values JSON knows."""
        positions = {
            str(number): _with_lists(stream.get_state()) for number, stream in self._streams.items()
        }
        return {"num_streams": self._num_streams, "positions": positions}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position; the next batch is the one that followed it.

        Args:
          state: From `get_state`, or from `merge_states`, of iterators over the same documents
            with the same arguments, but for the number of processes.

        Raises:
          ValueError: The state is of another number of streams, or lacks one.
        """
        if state["num_streams"] != self._num_streams:
            raise ValueError(
                f"the state is of {state['num_streams']} streams, not of {self._num_streams}"
            )
        missing = [number for number in self._streams if str(number) not in state["positions"]]
        if missing:
            raise ValueError(f"the state lacks the streams {missing}; merge all processes' states")
        for number, stream in self._streams.items():
            stream.set_state(_with_tuples(state["positions"][str(number)]))


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The positions of all streams, from the `get_state` of every process."""
    positions = {number: where for state in states for number, where in state["positions"].items()}
    return {"num_streams": states[0]["num_streams"], "positions": positions}


def train_batches(
    source: Sequence[str],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    global_batch_size: int,
    num_shards: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    read_threads: int = 0,
) -> TokenBatches:
    """Packs the documents, shuffled anew in every epoch, into batches without end.

    Stream i takes every `num_shards`-th shuffled document from the i-th on, joins them with an
    end-of-document token after each, and cuts rows from them without padding. A global batch is
    the streams' rows one below the other, so it does not depend on `process_count`.

    Args:
      source: The documents, by index.
      tokenizer: From `load_tokenizer`.
      seq_len: Tokens that the model sees. A row has one more: `row[:-1]` is the input, `row[1:]`
        the target.
      global_batch_size: Rows of all processes together.
      num_shards: Number of streams. Where `process_count` divides it, no stream is read twice.
      seed: Decides the order of the documents.
      process_index: This process, from 0.
      process_count: How many processes share a global batch, each an equal, contiguous part.
      read_threads: Threads of this process that read and tokenize ahead, shared out to its
        streams, at least one to each; 0: the calling thread does it.

    Returns:
      Batches of `global_batch_size / process_count` rows.

    Raises:
      UserError: `num_shards` or `process_count` does not divide `global_batch_size`.
    """
    if global_batch_size % process_count:
        raise UserError(
            f"training.global_batch_size: {global_batch_size} sequences cannot be shared evenly by "
            f"{process_count} processes; allowed: a multiple of {process_count}"
        )
    if global_batch_size % num_shards:
        raise UserError(
            f"data.num_shards: {num_shards} does not divide training.global_batch_size "
            f"{global_batch_size}; allowed: divisors of {global_batch_size}"
        )
    # Grain shuffles epoch e with seed + e: neighbouring seeds would share their epochs.
    shuffle_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    shuffled = grain.MapDataset.source(source).shuffle(seed=shuffle_seed).repeat()
    of_stream, local = global_batch_size // num_shards, global_batch_size // process_count
    first_row = process_index * local
    numbers = range(first_row // of_stream, -(-(first_row + local) // of_stream))
    skipped = first_row - numbers[0] * of_stream
    return TokenBatches(
        {
            number: _packed(
                shuffled[number::num_shards], tokenizer, seq_len, -(-read_threads // len(numbers))
            )
            .map(_tokens)
            .batch(of_stream)
            for number in numbers
        },
        num_shards,
        slice(skipped, skipped + local),
    )


def heldout_batches(
    source: Sequence[str],
    tokenizer: Tokenizer,
    *,
    seq_len: int,
    num_sequences: int,
    batch_size: int,
    read_threads: int = 0,
) -> list[Int32[np.ndarray, "batch seq_plus_1"]]:
    """Packs the first rows of the held-out documents, the same for every run and seed.

    Args:
      source: The held-out documents, by index.
      tokenizer: From `load_tokenizer`.
      seq_len: Tokens that the model sees; a row has one more.
      num_sequences: Number of rows.
      batch_size: Rows of a batch; the last one is smaller where this does not divide
        `num_sequences`.
      read_threads: Threads that read and tokenize ahead; 0: the calling thread does it.

    Raises:
      UserError: The documents fill fewer rows.
    """
    rows = _packed(grain.MapDataset.source(source), tokenizer, seq_len, read_threads)
    full = (_tokens(row) for row in rows if row["tokens_segment_ids"][-1])
    taken = list(itertools.islice(full, num_sequences))
    if len(taken) < num_sequences:
        raise UserError(
            f"training.eval_sequences: {num_sequences} rows of {seq_len + 1} tokens, and the "
            f"held-out text fills {len(taken)}; allowed: at most {len(taken)}, or more held-out "
            "text (raise data.heldout_fraction)"
        )
    return [
        np.stack(taken[start : start + batch_size]) for start in range(0, num_sequences, batch_size)
    ]


def heldout_documents(
    source: Sequence[str], tokenizer: Tokenizer, *, seq_len: int, num_sequences: int
) -> Int32[np.ndarray, " sequences"]:
    """The document that most tokens of each held-out row are of; the first of equally many.

    Rows of one document are not independent: tests take a document's rows together.

    Args:
      source: The held-out documents, by index.
      tokenizer: From `load_tokenizer`.
      seq_len: Tokens that the model sees; a row has one more.
      num_sequences: Number of rows, as of `heldout_batches`.
    """
    row_len = seq_len + 1
    most = np.zeros(num_sequences, int)
    found = np.zeros(num_sequences, np.int32)
    begin = 0
    for index, document in enumerate(source):
        end = begin + len(tokenizer.encode(document))
        rows = np.arange(begin // row_len, min(-(-end // row_len), num_sequences))
        tokens = np.minimum((rows + 1) * row_len, end) - np.maximum(rows * row_len, begin)
        more = rows[tokens > most[rows]]
        most[more], found[more] = tokens[tokens > most[rows]], index
        begin = end
        if end >= num_sequences * row_len:
            break
    return found


def _packed(
    documents: grain.MapDataset, tokenizer: Tokenizer, seq_len: int, threads: int
) -> grain.IterDataset:
    def encode(document: str) -> dict[str, Int32[np.ndarray, " tokens"]]:
        return {"tokens": tokenizer.encode(document)}

    return grain.experimental.ConcatThenSplitIterDataset(
        documents.map(encode).to_iter_dataset(read_options(threads)),
        length_struct={"tokens": seq_len + 1},
    )


def _tokens(row: dict[str, np.ndarray]) -> Int32[np.ndarray, " seq_plus_1"]:
    return row["tokens"]


def _with_lists(state: dict[str, Any]) -> dict[str, Any]:
    return {**state, "remainder_slices": {k: [*v] for k, v in state["remainder_slices"].items()}}


def _with_tuples(state: dict[str, Any]) -> dict[str, Any]:
    # Grain tells "no remainder" by comparing with a tuple, which JSON has made a list.
    return {**state, "remainder_slices": {k: (*v,) for k, v in state["remainder_slices"].items()}}

import itertools
import json
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relu_sparsity.data.pipeline import (
    TokenBatches,
    heldout_batches,
    heldout_documents,
    merge_states,
    train_batches,
)
from relu_sparsity.data.sources import Documents
from relu_sparsity.data.tokenizer import Tokenizer
from relu_sparsity.errors import UserError


def take(batches: TokenBatches, count: int) -> np.ndarray:
    return np.stack(list(itertools.islice(batches, count)))


def texts(rows: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    """The whole documents in rows that follow each other."""
    tokens = rows.reshape(-1)
    ends = (tokens == tokenizer.eos_id).nonzero()[0] + 1
    return [tokenizer.decode(document) for document in np.split(tokens, ends)[:-1]]


def epochs(source: list[str], tokenizer: Tokenizer, count: int, **kwargs) -> list[list[str]]:
    """The documents of the first epochs of a single stream."""
    size = sum(len(tokenizer.encode(text)) for text in source)
    batches = train_batches(
        source, tokenizer, seq_len=16, global_batch_size=1, num_shards=1, **kwargs
    )
    order = texts(take(batches, -(-count * size // 17)), tokenizer)
    return [order[i * len(source) : (i + 1) * len(source)] for i in range(count)]


def test_shape_and_targets(train_documents: Documents, tokenizer: Tokenizer):
    batches = train_batches(
        train_documents, tokenizer, seq_len=32, global_batch_size=8, num_shards=2, seed=0
    )
    batch = next(batches)
    assert batch.shape == (8, 33)
    assert batch.dtype == np.int32


def test_an_epoch_loses_pads_and_repeats_nothing(train_documents: Documents, tokenizer: Tokenizer):
    source = list(train_documents)
    first, second, third = epochs(source, tokenizer, 3, seed=0)
    assert sorted(first) == sorted(second) == sorted(third) == sorted(source)
    assert first != source
    assert first != second != third


def test_seeds_give_different_orders(tokenizer: Tokenizer):
    source = [f"document number {i}" for i in range(40)]
    orders = [tuple(o) for seed in range(4) for o in epochs(source, tokenizer, 4, seed=seed)]
    assert len(set(orders)) == 16
    assert epochs(source, tokenizer, 2, seed=3) == epochs(source, tokenizer, 2, seed=3)


def test_streams_share_out_the_shuffled_documents(tokenizer: Tokenizer):
    source = [f"document number {i}" for i in range(40)]
    order = epochs(source, tokenizer, 1, seed=5)[0]
    batches = train_batches(
        source, tokenizer, seq_len=16, global_batch_size=4, num_shards=4, seed=5
    )
    rows = take(batches, 3)
    for shard in range(4):
        found = texts(rows[:, shard], tokenizer)
        assert found
        assert found == order[shard::4][: len(found)]


@pytest.mark.parametrize("read_threads", [0, 3])
@pytest.mark.parametrize("process_count", [2, 4, 8])
@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_the_global_batch_depends_neither_on_processes_nor_on_threads(
    train_documents: Documents,
    tokenizer: Tokenizer,
    process_count: int,
    num_shards: int,
    read_threads: int,
):
    def start(index: int, count: int, read_threads: int = read_threads) -> TokenBatches:
        return train_batches(
            train_documents,
            tokenizer,
            seq_len=32,
            global_batch_size=8,
            num_shards=num_shards,
            seed=1,
            process_index=index,
            process_count=count,
            read_threads=read_threads,
        )

    alone = start(0, 1, read_threads=0)
    shared = [start(index, process_count) for index in range(process_count)]
    rows = [take(batches, 20) for batches in shared]
    assert rows[0].shape == (20, 8 // process_count, 33)
    np.testing.assert_array_equal(np.concatenate(rows, axis=1), take(alone, 20))
    # Any other number of processes goes on from where these are.
    position = merge_states([batches.get_state() for batches in shared])
    assert position == alone.get_state()
    pair = [start(index, 2) for index in range(2)]
    for batches in pair:
        batches.set_state(json.loads(json.dumps(position)))
    following = np.concatenate([take(batches, 5) for batches in pair], axis=1)
    np.testing.assert_array_equal(following, take(alone, 5))


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 120), min_size=1, max_size=8),
    seq_len=st.integers(1, 12),
    rows=st.integers(1, 3),
    num_shards=st.integers(1, 3),
    steps=st.integers(0, 12),
    read_threads=st.sampled_from([(0, 0), (4, 0), (0, 4), (4, 4)]),
)
def test_resuming_anywhere_gives_the_same_batches(
    tokenizer: Tokenizer,
    lengths: list[int],
    seq_len: int,
    rows: int,
    num_shards: int,
    steps: int,
    read_threads: tuple[int, int],
):
    source = [f"{i} " * length for i, length in enumerate(lengths)]

    def start(read_threads: int) -> TokenBatches:
        return train_batches(
            source,
            tokenizer,
            seq_len=seq_len,
            global_batch_size=rows * num_shards,
            num_shards=num_shards,
            seed=7,
            read_threads=read_threads,
        )

    whole = start(read_threads[0])
    take(whole, steps) if steps else None
    state = json.loads(json.dumps(whole.get_state()))
    expected = take(whole, 12)

    fresh = start(read_threads[1])
    fresh.set_state(state)
    assert fresh.get_state() == state
    np.testing.assert_array_equal(take(fresh, 12), expected)
    whole.set_state(state)
    np.testing.assert_array_equal(take(whole, 12), expected)


@pytest.mark.parametrize("read_threads", [0, 2])
def test_resuming_real_text_at_every_step(
    train_documents: Documents, tokenizer: Tokenizer, read_threads: int
):
    def start(read_threads: int = 0) -> TokenBatches:
        return train_batches(
            train_documents,
            tokenizer,
            seq_len=24,
            global_batch_size=4,
            num_shards=2,
            seed=0,
            read_threads=read_threads,
        )

    whole, states, expected = start(read_threads), [], []
    for _ in range(150):
        states.append(json.dumps(whole.get_state()))
        expected.append(next(whole))
    for step, state in enumerate(states[:-1]):
        resumed = start()
        resumed.set_state(json.loads(state))
        np.testing.assert_array_equal(take(resumed, 2), expected[step : step + 2])


def test_a_state_does_not_change_afterwards(train_documents: Documents, tokenizer: Tokenizer):
    batches = train_batches(
        train_documents, tokenizer, seq_len=8, global_batch_size=2, num_shards=1, seed=0
    )
    state = batches.get_state()
    before = json.dumps(state)
    take(batches, 5)
    assert json.dumps(state) == before


def test_a_state_of_other_streams_is_refused(train_documents: Documents, tokenizer: Tokenizer):
    def start(num_shards: int) -> TokenBatches:
        return train_batches(
            train_documents,
            tokenizer,
            seq_len=8,
            global_batch_size=4,
            num_shards=num_shards,
            seed=0,
        )

    with pytest.raises(ValueError, match="of 2 streams, not of 4"):
        start(4).set_state(start(2).get_state())


def test_documents_that_come_late_are_read_ahead(train_documents: Documents, tokenizer: Tokenizer):
    at_once, most, lock = 0, 0, threading.Lock()

    class Late(Sequence[str]):
        def __len__(self) -> int:
            return len(train_documents)

        def __getitem__(self, index):
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.02)
            with lock:
                at_once -= 1
            return train_documents[index]

    def start(source: Sequence[str], read_threads: int) -> TokenBatches:
        return train_batches(
            source,
            tokenizer,
            seq_len=16,
            global_batch_size=4,
            num_shards=2,
            seed=0,
            read_threads=read_threads,
        )

    rows = take(start(Late(), 8), 10)
    np.testing.assert_array_equal(rows, take(start(train_documents, 0), 10))
    assert most == 8  # Of both streams together.


def test_what_a_reading_thread_finds_wrong_is_told(tokenizer: Tokenizer):
    class Broken(Sequence[str]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index):
            raise UserError(f"document {index} is damaged")

    batches = train_batches(
        Broken(),
        tokenizer,
        seq_len=8,
        global_batch_size=2,
        num_shards=2,
        seed=0,
        read_threads=2,
    )
    with pytest.raises(UserError, match=r"document \d is damaged"):
        next(batches)


def test_no_threads_are_started(train_documents: Documents, tokenizer: Tokenizer):
    before = {*threading.enumerate()}
    batches = train_batches(
        train_documents, tokenizer, seq_len=8, global_batch_size=2, num_shards=1, seed=0
    )
    take(batches, 3)
    assert {*threading.enumerate()} <= before


@pytest.mark.parametrize(
    ("global_batch_size", "num_shards", "process_count", "message"),
    [
        (8, 3, 1, r"data\.num_shards: 3 does not divide training\.global_batch_size 8; allowed"),
        (8, 2, 3, r"global_batch_size: 8 sequences .* 3 processes; allowed: a multiple of 3"),
    ],
)
def test_streams_that_cannot_be_shared_out(
    tokenizer: Tokenizer,
    global_batch_size: int,
    num_shards: int,
    process_count: int,
    message: str,
):
    with pytest.raises(UserError, match=message):
        train_batches(
            ["text"],
            tokenizer,
            seq_len=8,
            global_batch_size=global_batch_size,
            num_shards=num_shards,
            seed=0,
            process_count=process_count,
        )


@pytest.mark.parametrize("read_threads", [0, 3])
def test_heldout_rows_are_the_first_ones_in_order(
    heldout_documents: Documents, tokenizer: Tokenizer, read_threads: int
):
    batches = heldout_batches(
        heldout_documents,
        tokenizer,
        seq_len=16,
        num_sequences=50,
        batch_size=16,
        read_threads=read_threads,
    )
    assert [len(batch) for batch in batches] == [16, 16, 16, 2]
    tokens = np.concatenate([tokenizer.encode(document) for document in heldout_documents])
    np.testing.assert_array_equal(np.concatenate(batches).reshape(-1), tokens[: 50 * 17])


def test_a_heldout_row_is_of_the_document_that_most_of_it_is_of(tokenizer: Tokenizer):
    source = ["ab " * length for length in (15, 1, 1, 12, 60, 9, 30, 2, 25, 14, 8, 60)]
    rows = np.concatenate(
        heldout_batches(source, tokenizer, seq_len=16, num_sequences=20, batch_size=5)
    )
    documents = heldout_documents(source, tokenizer, seq_len=16, num_sequences=20)
    of_token = np.concatenate(
        [np.full(len(tokenizer.encode(text)), number) for number, text in enumerate(source)]
    )[: rows.size].reshape(rows.shape)
    expected = [np.bincount(row).argmax() for row in of_token]
    assert documents.tolist() == expected
    assert len(set(expected)) > 1


@given(st.lists(st.text("ab ", max_size=30), min_size=1, max_size=5), st.integers(1, 9))
def test_heldout_rows_are_never_padded(tokenizer: Tokenizer, source: list[str], seq_len: int):
    tokens = np.concatenate([tokenizer.encode(document) for document in source])
    count = len(tokens) // (seq_len + 1)

    def heldout(num_sequences: int) -> list[np.ndarray]:
        return heldout_batches(
            source, tokenizer, seq_len=seq_len, num_sequences=num_sequences, batch_size=4
        )

    if count:
        rows = np.concatenate(heldout(count))
        np.testing.assert_array_equal(rows.reshape(-1), tokens[: count * (seq_len + 1)])
    with pytest.raises(
        UserError, match=rf"training\.eval_sequences: .* fills {count}; .*data\.heldout_fraction"
    ):
        heldout(count + 1)

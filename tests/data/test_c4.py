"""C4 as TFDS stores it, in several files, and four hosts that share it."""

import concurrent.futures
import functools
import itertools
import multiprocessing
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from c4_dataset import NAME, VALIDATION_EVERY, store_c4

from relu_sparsity.data import docs, sources
from relu_sparsity.data.pipeline import train_batches
from relu_sparsity.data.tokenizer import load_tokenizer, train_tokenizer
from relu_sparsity.params import DataParams

SHARDS, HOSTS, ROWS = 8, 4, 16


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataParams:
    folder = tmp_path_factory.mktemp("tfds")
    store_c4(folder, num_shards=4)
    return DataParams(
        source="tfds", tfds_name=NAME, data_dir=str(folder), num_shards=SHARDS, read_threads=4
    )


@pytest.fixture(scope="module")
def folder(data: DataParams, tmp_path_factory) -> Path:
    return sources.prepare(data, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def tokenizer_path(data: DataParams, folder: Path) -> Path:
    path = folder.parent / "tokenizer.model"
    train_tokenizer(sources.documents(data, folder, "train"), 600, path, max_documents=300)
    return path


def test_it_is_what_tfds_knows_as_c4(data: DataParams):
    stored = Path(str(data.data_dir)) / "c4" / "en" / "3.1.0"
    assert len([*stored.glob("c4-train.array_record-*-of-00004")]) == 4
    by_folder = tfds.builder_from_directory(stored).as_data_source("train")
    by_name = tfds.data_source("c4/en", data_dir=data.data_dir, split="train")
    assert len(by_folder) == len(by_name)
    assert {*by_name[0]} == {"text", "url", "content-type", "content-length", "timestamp"}


def test_heldout_text_is_its_validation_split(data: DataParams, folder: Path):
    everything = [*docs.documents(["optax", "networkx"])]
    heldout = sorted(sources.documents(data, folder, "heldout"))
    assert heldout == sorted(everything[::VALIDATION_EVERY])
    train = [*sources.documents(data, folder, "train")]
    assert sorted(train + heldout) == sorted(everything)


def test_the_manifest(data: DataParams, folder: Path, tokenizer_path: Path):
    found = sources.manifest(data, folder, tokenizer_path)
    assert (found["name"], found["version"]) == ("c4/en", "3.1.0")
    documents = len([*docs.documents(["optax", "networkx"])])
    assert sum(split["documents"] for split in found["splits"].values()) == documents
    assert str(data.data_dir) not in str(found)


def read_as_host(
    data: DataParams, folder: Path, tokenizer_path: Path, steps: int, host: int
) -> np.ndarray:
    batches = train_batches(
        sources.documents(data, folder, "train"),
        load_tokenizer(tokenizer_path),
        seq_len=64,
        global_batch_size=ROWS,
        num_shards=data.num_shards,
        seed=0,
        process_index=host,
        process_count=HOSTS,
        read_threads=data.read_threads,
    )
    return np.stack([*itertools.islice(batches, steps)])


def test_four_hosts_read_every_document_once(data: DataParams, folder: Path, tokenizer_path: Path):
    train, tokenizer = sources.documents(data, folder, "train"), load_tokenizer(tokenizer_path)
    tokens = [len(tokenizer.encode(document)) for document in train]
    of_stream = [range(stream, len(train), SHARDS) for stream in range(SHARDS)]
    # Enough for every stream to come to the end of the first epoch, whichever documents are in it.
    most = sum(sorted(tokens)[-len(of_stream[0]) :])
    read = functools.partial(read_as_host, data, folder, tokenizer_path, -(-most // (2 * 65)))
    # As on a slice, no process knows of what another has read.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(HOSTS, context) as executor:
        rows = np.concatenate([*executor.map(read, range(HOSTS))], axis=1)
    found = Counter[str]()
    for stream, documents in enumerate(of_stream):
        stream_tokens = rows[:, 2 * stream : 2 * stream + 2].reshape(-1)
        ends = (stream_tokens == tokenizer.eos_id).nonzero()[0][: len(documents)] + 1
        assert len(ends) == len(documents)
        pieces = np.split(stream_tokens, ends)[:-1]
        found.update(tokenizer.decode(piece) for piece in pieces)
    assert found == Counter(train)

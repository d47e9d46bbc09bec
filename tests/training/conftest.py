"""A real run on real text that trains in a second."""

import jax
import pytest

from relu_sparsity.data import sources
from relu_sparsity.data.tokenizer import load_tokenizer, train_tokenizer
from relu_sparsity.params import (
    DataParams,
    MetricsParams,
    ModelParams,
    OptimizerParams,
    RunConfig,
    TrainingParams,
)
from relu_sparsity.training.job import TrainingJob

DATA = DataParams(packages=("optax",), heldout_fraction=0.2)


@pytest.fixture(autouse=True)
def compile_without_most_optimizations(request):
    """Small programs take longer to compile than to run.

    `optimized` marks the tests that compare the bits of two programs, which optimizations may tell
    apart.
    """
    if "optimized" in request.keywords:
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """Training documents, held-out documents and a tokenizer."""
    folder = tmp_path_factory.mktemp("text")
    prepared = sources.prepare(DATA, folder)
    train, heldout = (sources.documents(DATA, prepared, split) for split in ("train", "heldout"))
    train_tokenizer(train, 400, folder / "tokenizer.model", 200)
    return train, heldout, load_tokenizer(folder / "tokenizer.model")


@pytest.fixture(scope="session")
def config():
    return RunConfig(
        data=DATA,
        model=ModelParams(num_layers=2, emb_dim=8, num_heads=2, mlp_dim=16, mlp_bias=True),
        optimizer=OptimizerParams(peak_lr=0.02, warmup_steps=4),
        training=TrainingParams(
            num_steps=14,
            seq_len=16,
            per_device_batch_size=4,
            global_batch_size=8,
            eval_every_steps=6,
            eval_sequences=12,
            checkpoint_every_steps=4,
            log_every_steps=5,
        ),
        metrics=MetricsParams(metrics_every_steps=3, convergence_window=6, early_steps=7),
        mask={"step": 7},
    )


@pytest.fixture
def make_job(config, text, tmp_path):
    """Builds a training job in a folder of its own."""
    train, heldout, tokenizer = text

    def make(name="run", **changes):
        fields = {
            "config": config,
            "seed": 0,
            "train_documents": train,
            "heldout_documents": heldout,
            "tokenizer": tokenizer,
            "checkpoints": tmp_path / name / "checkpoints",
            "throughput": tmp_path / name / "throughput.csv",
            "progress": tmp_path / name / "progress.json",
        }
        return TrainingJob(name=name, **(fields | changes))

    return make


@pytest.fixture
def written(tmp_path):
    """The bytes of a history's files, by name."""

    def write(history):
        folder = tmp_path / f"written{len(list(tmp_path.iterdir()))}"
        history.write(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return write

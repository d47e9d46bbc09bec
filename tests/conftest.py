"""Eight simulated devices, checked array shapes, and small real text for every test."""

import contextlib
import os
import shutil
import tempfile

# Before JAX starts: tests share batches between up to eight devices of one CPU.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"
# Many tests compile the same programs, in this process and in jobs of their own.
if "PYTEST_XDIST_WORKER" not in os.environ:
    # Workers share the folder of the process that started them.
    _COMPILED = tempfile.TemporaryDirectory(prefix="relu-sparsity-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook
from repository import PARAMS, ROOT

# A busy machine is slow, and not wrong.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

install_import_hook(
    [
        "relu_sparsity.model",
        "relu_sparsity.sparsity",
        "relu_sparsity.interventions",
        "relu_sparsity.trained",
    ],
    "beartype.beartype",
)


@pytest.fixture(scope="session", autouse=True)
def without_a_users_files(tmp_path_factory):
    """The current folder is a checkout with the parameters that ship, and without results."""
    folder = tmp_path_factory.mktemp("as_it_ships")
    shutil.copy(PARAMS, folder)
    for name in ("src", "workflow", "tpu", "requirements-tpu.txt"):
        (folder / name).symlink_to(ROOT / name)
    with contextlib.chdir(folder):
        yield


@pytest.fixture(scope="session")
def english_tokens(tmp_path_factory):
    """A device batch of the paper's shape, 16 x 512 tokens of real English."""
    from relu_sparsity.data import sources
    from relu_sparsity.data.pipeline import train_batches
    from relu_sparsity.data.tokenizer import load_tokenizer, train_tokenizer
    from relu_sparsity.params import DataParams

    folder = tmp_path_factory.mktemp("english")
    data = DataParams(packages=("networkx",))
    documents = sources.documents(data, sources.prepare(data, folder), "train")
    train_tokenizer(documents, 8000, folder / "tokenizer.model", 500)
    batches = train_batches(
        documents,
        load_tokenizer(folder / "tokenizer.model"),
        seq_len=512,
        global_batch_size=16,
        num_shards=1,
        seed=0,
    )
    return np.asarray(next(batches)[:, :-1])

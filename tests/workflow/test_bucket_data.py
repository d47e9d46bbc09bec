"""A run on C4 as TFDS stores it: in one process from a disk, on four hosts from a bucket."""

from pathlib import Path

import pandas as pd
import pytest
from c4_dataset import NAME, store_c4
from gcs_emulator import start_gcs_emulator
from projects import simulated

TRAIN = ("train", "--run", "baseline")


@pytest.fixture
def project(fresh, tmp_path):
    project = fresh.copy(tmp_path / "project")
    store_c4(tmp_path / "tfds", num_shards=4)

    def take_c4(document):
        smoke = document["scales"]["smoke"]
        smoke["data"] = {
            "source": "tfds",
            "tfds_name": NAME,
            "data_dir": str(tmp_path / "tfds"),
            "num_shards": 4,
        }
        smoke["training"]["global_batch_size"] = 8

    project.edit(take_c4)
    for command in ("tokenizer", "data"):
        project.run("relu_sparsity.cli", command)
    return project


def test_hosts_that_read_a_bucket_train_what_one_process_trains_from_a_disk(project, tmp_path):
    tables = []
    results = project.results / "runs/baseline/seed0"
    project.run("relu_sparsity.cli", *TRAIN, XLA_FLAGS=simulated(4), RELU_SPARSITY_STORE="alone")
    tables.append({name: pd.read_csv(results / f"{name}.csv") for name in ("unit_use", "training")})
    results.rename(tmp_path / "alone")
    with start_gcs_emulator(tmp_path) as bucket:
        for path in (tmp_path / "tfds" / "c4").rglob("*"):
            if path.is_file():
                bucket.write(str(path.relative_to(tmp_path)), path.read_bytes())
        bucket.latency = 0.02

        def from_bucket(document):
            data = document["scales"]["smoke"]["data"]
            data.update(data_dir=f"gs://{bucket.bucket}/tfds", read_threads=16)

        project.edit(from_bucket)
        hosts = project.start_hosts(4, *TRAIN, **bucket.environment)
        outputs = [process.communicate(timeout=600)[0] for process in hosts]
        assert [process.returncode for process in hosts] == [0] * 4, outputs
        files = {Path(name).name for name in bucket.names("tfds/c4/en/3.1.0/c4-train")}
        read = {name for name in files if any(name in request for request in bucket.requests)}
        assert read == files
    tables.append({name: pd.read_csv(results / f"{name}.csv") for name in ("unit_use", "training")})
    pd.testing.assert_frame_equal(*(each["unit_use"] for each in tables), check_exact=True)
    pd.testing.assert_frame_equal(*(each["training"] for each in tables), rtol=1e-5, atol=1e-7)

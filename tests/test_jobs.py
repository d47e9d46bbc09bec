"""What a job checks of the results that it reads."""

import pytest
import yaml
from repository import PARAMS

from relu_sparsity.errors import UserError
from relu_sparsity.files import write_json, write_text
from relu_sparsity.jobs import job_table, require_current
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params
from relu_sparsity.provenance import record_keys


@pytest.fixture
def table(tmp_path):
    return job_table(load_params(PARAMS, "smoke"), Layout("smoke", root=tmp_path))


def make(job):
    for path in job.outputs:
        write_text(path, job.name)
    write_json(job.record, record_keys(job.fingerprint, job.outputs))


def test_the_size_of_a_given_vocabulary_counts_too(tmp_path):
    """It is checked where the tokenizer is made, so another one has to make it again."""
    (tmp_path / "my.model").write_bytes(b"a model")
    found = []
    for size in (400, 5000):
        document = yaml.safe_load(PARAMS.read_text())
        given = {"model": str(tmp_path / "my.model"), "vocab_size": size}
        document["scales"]["smoke"]["tokenizer"] = given
        write_text(tmp_path / "params.yaml", yaml.safe_dump(document))
        table = job_table(load_params(tmp_path / "params.yaml", "smoke"), Layout("smoke", tmp_path))
        found.append(table["tokenizer"].fingerprint.hash)
    assert found[0] != found[1]


def test_a_mask_needs_the_text_and_not_the_results_of_its_parent(table):
    """The store has the parent's checkpoint, or the parent is trained up to it, on this text."""
    job = table["mask/masked/seed0"]
    with pytest.raises(UserError, match=r"tokenizer.model: is missing; run 'relu-sparsity token"):
        require_current(job, table, "smoke")
    for name in ("tokenizer", "data"):
        make(table[name])
    assert require_current(job, table, "smoke") == set()
    write_text(table["tokenizer"].outputs[0], "of another text")
    with pytest.raises(UserError, match=r"tokenizer.model: was changed after it was written"):
        require_current(job, table, "smoke")


def test_what_is_extracted_needs_the_run(table):
    for name in ("tokenizer", "data"):
        make(table[name])
    job = table["extract/baseline/seed0"]
    with pytest.raises(UserError, match=r"is missing; run 'relu-sparsity train --run baseline"):
        require_current(job, table, "smoke")
    make(table["train/baseline/seed0"])
    assert require_current(job, table, "smoke") == set()


def test_a_table_needs_the_histories_too(table):
    """It reads them beside the metrics, which may be those of before."""
    train, extract = (table[f"{rule}/baseline/seed0"] for rule in ("train", "extract"))
    for job in (table["tokenizer"], table["data"], train, extract):
        make(job)
    require_current(table["table/table1"], table, "smoke")
    write_text(train.outputs[0], "changed by hand")
    with pytest.raises(UserError, match=r"unit_use.csv: was changed after it was written"):
        require_current(table["table/table1"], table, "smoke")

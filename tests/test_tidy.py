"""What is in the store, and that only what nobody needs is freed."""

import json
from pathlib import Path

import pytest
from etils import epath
from repository import PARAMS
from typer.testing import CliRunner

from relu_sparsity import tidy
from relu_sparsity.cli import app
from relu_sparsity.errors import UserError
from relu_sparsity.files import write_json
from relu_sparsity.layout import Layout
from relu_sparsity.params_file import load_params
from relu_sparsity.runs import resolve
from relu_sparsity.store import RunStore


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with a current run, a stale one, one of a seed and one of a run that are gone."""
    monkeypatch.setenv("RELU_SPARSITY_STORE", str(tmp_path / "store"))
    # Results beside it, of a run that params.yaml no longer has, are the user's.
    monkeypatch.chdir(tmp_path)
    current = resolve(load_params(PARAMS, "smoke"), Layout("smoke"), "baseline", 0).store.folder
    root = tmp_path / "store" / "runs" / "smoke"
    folders = {
        "current": Path(current),
        "stale": root / "baseline" / "seed0" / "0123456789abcdef",
        "seed": root / "baseline" / "seed7" / "0123456789abcdef",
        "run": root / "no_longer" / "seed0" / "0123456789abcdef",
    }
    for folder in folders.values():
        (folder / "checkpoints" / "5").mkdir(parents=True)
        (folder / "checkpoints" / "5" / "weights").write_bytes(bytes(1000))
    (tmp_path / "store" / "data").mkdir()
    (tmp_path / "store" / "data" / "text").write_bytes(bytes(20))
    return folders


@pytest.fixture
def layout(tmp_path):
    return Layout("smoke", root=tmp_path / "results")


def found(layout):
    return tidy.entries(load_params(PARAMS, "smoke"), layout)


def invoke(*arguments, **keywords):
    options = ["--scale", "smoke", "--params", str(PARAMS)]
    return CliRunner().invoke(app, ["tidy", *options, *arguments], **keywords)


def test_tells_what_is_current_stale_and_removed_with_sizes(store, layout):
    told = {Path(each.folder): (each.run, each.seed, each.state, each.size)
            for each in found(layout)}  # fmt: skip
    assert told == {
        store["current"]: ("baseline", "0", "current", 1000),
        store["stale"]: ("baseline", "0", "stale", 1000),
        store["seed"]: ("baseline", "7", "removed", 1000),
        store["run"]: ("no_longer", "0", "removed", 1000),
    }
    others = tidy.others("smoke")
    assert {Path(folder).name: size for folder, size in others.items()} == {"data": 20}
    lines = "\n".join(tidy.as_lines(found(layout), others))
    assert "current: 1 folder, 1.0 kB\n" in lines
    assert "removed: 2 folders, 2.0 kB" in lines


def test_results_of_a_run_that_is_gone_are_named_and_freed(store, layout):
    for run in ("baseline", "no_longer"):
        layout.run(run, 0).mkdir(parents=True)
        (layout.run(run, 0) / "run.json").write_text("{}")
    layout.run("baseline", 0).with_name("seed0_my_copy").mkdir()
    (entry,) = (each for each in found(layout) if each.store is None)
    assert (Path(entry.folder), entry.state) == (layout.run("no_longer", 0), "removed")
    assert [why for _, why in tidy.free([entry])] == [""]
    assert not layout.run("no_longer", 0).parent.exists()
    assert layout.run("baseline", 0).is_dir()


def test_what_is_being_trained_is_kept(store, layout):
    entries = [each for each in found(layout) if each.state != "current"]
    training = RunStore(store["stale"].parents[4], "smoke", "baseline", 0, store["stale"].name)
    assert Path(training.folder) == store["stale"]
    with training.lock():
        why = {Path(each.folder): why for each, why in tidy.free(entries)}
    assert "is being trained by another process" in why.pop(store["stale"])
    assert set(why.values()) == {""}
    assert store["stale"].is_dir()
    assert store["current"].is_dir()
    assert not store["run"].parents[1].exists()


def test_where_a_run_was_trained_before_it_was_accepted_is_current(store, layout):
    """Its results have the fingerprint of now; its parameters stay where they are."""
    fingerprint = resolve(load_params(PARAMS, "smoke"), layout, "baseline", 0).job.fingerprint
    record = {
        "fingerprint": fingerprint.hash,
        "made_from": fingerprint.as_json(),
        "sha256": {},
        "accepted": [{"fingerprint": store["stale"].name, "optax": "0.1"}],
    }
    write_json(layout.run("baseline", 0) / "run.json", record)
    assert {Path(each.folder) for each in found(layout) if each.state == "current"} == {
        store["current"], store["stale"],
    }  # fmt: skip
    write_json(layout.run("baseline", 0) / "run.json", record | {"fingerprint": "of before"})
    assert store["stale"] not in {
        Path(each.folder) for each in found(layout) if each.state == "current"
    }


def test_a_current_run_is_never_freed(store, layout):
    current = [each for each in found(layout) if each.state == "current"]
    with pytest.raises(ValueError, match="is current"):
        list(tidy.free(current))
    assert store["current"].is_dir()


def test_a_bucket_is_not_touched(store):
    entry = tidy.Entry("baseline", "0", "stale", 1, epath.Path("gs://bucket/runs/x"))
    with pytest.raises(UserError, match="has no locks"):
        list(tidy.free([entry]))


def test_a_choice_that_the_scale_has_made_is_stale_and_not_removed(store, layout):
    folder = store["stale"].parents[2] / "small_embeddings" / "seed0" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(10))
    layout.run("small_embeddings", 0).mkdir(parents=True)
    params = load_params(PARAMS, "smoke").model_copy(
        update={"same_as_baseline": ("small_embeddings",)}
    )
    params.runs.pop("small_embeddings")
    (entry,) = (each for each in tidy.entries(params, layout) if each.run == "small_embeddings")
    assert (Path(entry.folder), entry.state) == (folder, "stale")


def test_a_mistyped_run_is_told(store):
    refused = invoke("--run", "basline")
    assert isinstance(refused.exception, UserError)
    assert "--run basline: no such run; allowed: attention_bias, " in str(refused.exception)


def test_the_command_frees_only_when_told_to_twice(store):
    assert invoke().exit_code == 0
    refused = invoke("--free", input="n\n")
    assert refused.exit_code == 1
    assert "Delete 3 folders, 3.0 kB?" in refused.output
    assert all(folder.is_dir() for folder in store.values())
    one = json.loads(invoke("--free", "--yes", "--json", "--run", "no_longer").stdout)
    assert one["deleted"] == [str(store["run"])]
    assert store["stale"].is_dir()
    rest = json.loads(invoke("--free", "--yes", "--json").stdout)
    assert set(rest["deleted"]) == {str(store["stale"]), str(store["seed"])}
    assert rest["kept"] == {}
    assert json.loads(invoke("--json").stdout)["folders"] == [
        {
            "run": "baseline",
            "seed": "0",
            "state": "current",
            "size": 1000,
            "folder": str(store["current"]),
        }
    ]


def test_a_copy_of_ones_own_in_the_store_is_not_offered(store, layout):
    copy = store["stale"].parents[1] / "seed0_my_copy" / store["stale"].name
    copy.mkdir(parents=True)
    assert copy not in {Path(each.folder) for each in found(layout)}
    assert json.loads(invoke("--free", "--yes", "--json").stdout)["kept"] == {}
    assert copy.is_dir()

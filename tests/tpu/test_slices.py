"""Slices as settings, names and gcloud's JSON describe them."""

import json
import re
import subprocess

import pytest

from relu_sparsity.errors import UserError
from relu_sparsity.tpu import slices
from relu_sparsity.tpu.slices import (
    AlreadyExists,
    Gcloud,
    PassingTrouble,
    Slice,
    SliceParams,
    load_slice_params,
    owner_of,
    slice_name,
)

# What `gcloud compute tpus queued-resources describe --format=json` prints.
FAILED = {
    "createTime": "2026-11-01T10:00:00Z",
    "name": "projects/p/locations/us-central1-a/queuedResources/relu-sparsity-tpu-x-1",
    "spot": {},
    "state": {
        "state": "FAILED",
        "failedData": {"error": {"code": 8, "message": "no more capacity"}},
        "stateInitiator": "SERVICE",
    },
    "tpu": {
        "nodeSpec": [
            {
                "nodeId": "relu-sparsity-tpu-x-1",
                "node": {
                    "acceleratorType": "v2-32",
                    "labels": {"relu-sparsity-store": "abc"},
                    "runtimeVersion": "tpu-ubuntu2204-base",
                },
                "parent": "projects/p/locations/us-central1-a",
            }
        ]
    },
}


def gcloud_answers(monkeypatch, *answers):
    """Lets calls of gcloud end with an exit status, an output and a message, one by one."""
    left = list(answers)
    calls = []

    def run(command, **_):
        calls.append(command)
        status, stdout, stderr = left.pop(0)
        return subprocess.CompletedProcess(command, status, stdout, stderr)

    monkeypatch.setattr(slices.subprocess, "run", run)
    monkeypatch.setattr(slices.time, "sleep", lambda seconds: None)
    return calls


def test_reads_what_gcloud_describes():
    found = Slice.from_json(FAILED)
    assert (found.name, found.state, found.message) == (
        "relu-sparsity-tpu-x-1", "FAILED", "no more capacity",
    )  # fmt: skip
    assert (found.accelerator_type, found.spot) == ("v2-32", True)
    assert found.labels == {"relu-sparsity-store": "abc"}
    bare = Slice.from_json({"name": "a/b/c", "state": {"state": "ACCEPTED"}})
    assert (bare.name, bare.state, bare.spot, bare.labels) == ("c", "ACCEPTED", False, {})


@pytest.mark.parametrize(
    "parts",
    [
        ("tpu", "baseline", "seed0", "0123abcd"),
        ("tpu", "a_very_long_experiment_of_someone_" * 4, "seed12345", "step50000", "0123abcd"),
    ],
)
def test_names_are_what_cloud_tpu_allows(parts):
    name = slice_name(*parts)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,59}[a-z0-9])?", name)
    assert name.startswith("relu-sparsity-tpu-")
    assert name.endswith("-0123abcd")


def test_owners_differ_by_store_and_are_labels():
    assert owner_of("gs://a/b") == owner_of("gs://a/b/")
    assert owner_of("gs://a/b") != owner_of("gs://a/c")
    assert re.fullmatch(r"[a-z0-9_-]{1,63}", owner_of("gs://a/b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spot: 'yes'", r"slices.yaml: spot: 'yes': input should be a valid boolean"),
        ("zoen: a", r"slices.yaml: zoen: is no known key; allowed: accelerator_type, "),
        ("accelerator_type: 32", r"slices.yaml: accelerator_type: 32: "),
        ("accelerator_type: v2 32", r"slices.yaml: accelerator_type: 'v2 32': string should match"),
        ("max_failures: 0", r"slices.yaml: max_failures: 0: "),
        ("- a", r"slices.yaml: allowed: a mapping with the keys accelerator_type, "),
        ("a: [", r"slices.yaml: not a YAML file"),
    ],
)
def test_bad_settings_are_named(tmp_path, text, message):
    path = tmp_path / "slices.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_slice_params(path)


def test_the_profiles_settings_are_good(pytestconfig):
    path = pytestconfig.rootpath / "workflow/profiles/tpu/slices.yaml"
    assert load_slice_params(path) == SliceParams()
    with pytest.raises(UserError, match=r"nothing.yaml: no such file"):
        load_slice_params(path.with_name("nothing.yaml"))


def test_what_passes_is_told_from_what_does_not(monkeypatch):
    cloud = Gcloud("p", "z")
    calls = gcloud_answers(
        monkeypatch,
        (1, "", "ERROR: (gcloud...describe) NOT_FOUND: Resource was not found"),
        (1, "", "ERROR: UNAVAILABLE: The service is currently unavailable."),
        (1, "", "ERROR: PERMISSION_DENIED: Permission tpu.queuedResources.get denied"),
        (0, json.dumps(FAILED), ""),
    )
    assert cloud.describe("x") is None
    with pytest.raises(PassingTrouble, match="UNAVAILABLE"):
        cloud.describe("x")
    with pytest.raises(UserError, match=r"gcloud compute tpus queued-resources .*PERMISSION"):
        cloud.describe("x")
    found = cloud.describe("x")
    assert found is not None
    assert found.state == "FAILED"
    assert all("--project=p" in call and "--zone=z" in call for call in calls)


QUOTA = (
    "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit "
    "'TPUV2sPreemptiblePodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone a-zone."
)


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        (QUOTA, False),
        ("RESOURCE_EXHAUSTED: There is no more capacity in the zone a-zone", True),
        ("RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Requests' per minute", True),
        ("HTTPError 429: Too Many Requests", True),
        ("INTERNAL: internal error encountered", True),
        ("INVALID_ARGUMENT: the internal IP range is no subnetwork", False),
        ("PERMISSION_DENIED: no connection to the project is allowed", False),
        ("FAILED_PRECONDITION: Cloud TPU API has not been enabled", False),
        ("HTTPError 403: The caller does not have permission", False),
        ("Connection reset by peer", True),
        ("ALREADY_EXISTS: relu-sparsity-x", False),
        ("a flag of this name has no connection with anything", False),
    ],
)
@pytest.mark.parametrize("verb", ["create", "describe", "list"])
def test_a_quota_is_refused_and_capacity_passes_at_every_call(
    monkeypatch, tmp_path, message, passes, verb
):
    calls = gcloud_answers(monkeypatch, (1, "", message))
    cloud = Gcloud("p", "z")
    do = {
        "create": lambda: cloud.create(
            "x", SliceParams(), startup_script=tmp_path / "s", labels={"a": "b"}
        ),
        "describe": lambda: cloud.describe("x"),
        "list": cloud.list,
    }
    with pytest.raises(PassingTrouble if passes else UserError):
        do[verb]()
    assert [call[4] for call in calls] == [verb]


@pytest.mark.parametrize(
    ("code", "message", "refused"),
    [(8, "no more capacity", False), (8, QUOTA, True), (7, "The caller", True), (9, "x", True)],
)
def test_a_failed_request_tells_by_its_code_whether_waiting_helps(code, message, refused):
    state = {"state": "FAILED", "failedData": {"error": {"code": code, "message": message}}}
    assert Slice.from_json(FAILED | {"state": state}).is_refused() == refused


def test_deletes_until_it_is_gone(monkeypatch):
    cloud = Gcloud("p", "z")
    gone = (1, "", "NOT_FOUND")
    calls = gcloud_answers(
        monkeypatch, (1, "", "UNAVAILABLE"), (0, "", ""), (0, json.dumps(FAILED), ""), gone
    )
    cloud.delete("x")
    assert [call[4] for call in calls] == ["delete", "delete", "describe", "delete"]
    gcloud_answers(monkeypatch, *[(1, "", "PERMISSION_DENIED")] * 2)
    with pytest.raises(UserError, match=r"x could not be deleted .*may cost money.*tpu cleanup"):
        cloud.delete("x", patience=-1)


def test_a_zone_that_is_not_there_is_told_in_the_clouds_words(monkeypatch, tmp_path):
    calls = gcloud_answers(monkeypatch, *[(1, "", "NOT_FOUND: Location a-zone was not found")] * 2)
    cloud = Gcloud("p", "z")
    with pytest.raises(UserError, match="Location a-zone was not found"):
        cloud.create("x", SliceParams(), startup_script=tmp_path / "s", labels={"a": "b"})
    with pytest.raises(UserError, match="Location a-zone was not found"):
        cloud.list()
    assert len(calls) == 2


def test_a_slice_of_that_name_is_told_from_other_refusals(monkeypatch, tmp_path):
    gcloud_answers(monkeypatch, (1, "", "ALREADY_EXISTS: relu-sparsity-x"))
    with pytest.raises(AlreadyExists):
        Gcloud("p", "z").create("x", SliceParams(), startup_script=tmp_path / "s", labels={})


def test_a_gcloud_that_cannot_start_now_may_later(monkeypatch, tmp_path):
    (tmp_path / "gcloud").write_text("no program yet")
    (tmp_path / "gcloud").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PassingTrouble, match="gcloud could not be started"):
        Gcloud("p", "z").describe("x")


def test_lists_only_its_own(monkeypatch):
    foreign = FAILED | {"name": "projects/p/locations/z/queuedResources/someone-elses"}
    gcloud_answers(monkeypatch, (0, json.dumps([FAILED, foreign]), ""))
    assert [each.name for each in Gcloud("p", "z").list()] == ["relu-sparsity-tpu-x-1"]

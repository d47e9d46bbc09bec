"""Keeping results that other versions of packages have made."""

from collections.abc import Collection, Mapping
from typing import Any

from relu_sparsity.files import read_json, write_json
from relu_sparsity.jobs import Job, job_table
from relu_sparsity.layout import Layout
from relu_sparsity.params import Params
from relu_sparsity.provenance import Digests, Record, changed_files, read_record
from relu_sparsity.runs import resolve_all


def accept_other_versions(params: Params, layout: Layout) -> dict[str, dict[str, str]]:
    """Takes results as they are where nothing but the versions of packages has changed.

    Their records get the fingerprint of now, and tell under `accepted` which versions made them.
    A trained run moves in the store, so it is not trained again.

    Returns:
      By job, the packages that made its results in another version than that of now; none where
      only results before it were accepted.
    """
    digests = Digests()
    runs = {run.job.name: run for run in resolve_all(params, layout)}
    accepted: dict[str, dict[str, str]] = {}
    # By job, what its results were before they were accepted, now or by a call that was stopped.
    before: dict[str, set[str]] = {}
    for job in job_table(params, layout).values():
        record = read_record(job.record)
        if record is None:
            continue
        content = read_json(job.record)
        history = content.get("accepted", [])
        before[job.name] = {told["fingerprint"] for told in history}
        if not _differs_by_versions(job, record, before, digests):
            continue
        run = runs.get(job.name)
        if run and (trained := run.store_of(record.fingerprint)).is_finished():
            # What is missing here is there.
            trained.export(run.folder)
        if not all(path.is_file() for path in job.outputs):
            continue
        versions = {
            name: version
            for name, version in record.made_from["packages"].items()
            if job.fingerprint.packages.get(name) != version
        }
        before[job.name].add(record.fingerprint)
        accepted[job.name] = versions
        history = [*history, {"fingerprint": record.fingerprint, **versions}]
        if run:
            # As the store and `adopt` know it.
            run.keep_results()
        now = {"fingerprint": job.fingerprint.hash, "made_from": job.fingerprint.as_json()}
        write_json(job.record, content | now | {"accepted": history})
        if run:
            run.keep_results()
            run.take_over(record.fingerprint)
    return accepted


def still_stale(params: Params, layout: Layout) -> dict[str, list[str]]:
    """The jobs whose results are there and are not those of now, by what differs."""
    digests = Digests()
    by_reason: dict[str, list[str]] = {}
    for job in job_table(params, layout).values():
        if job.record.is_file() and (problems := job.problems(digests)):
            by_reason.setdefault("; ".join(problems), []).append(job.name)
    return by_reason


def _differs_by_versions(
    job: Job, record: Record, before: Mapping[str, Collection[str]], digests: Digests
) -> bool:
    """Whether a result that is whole would be current but for versions of packages."""
    now: dict[str, Any] = job.fingerprint.as_json()
    if record.fingerprint == job.fingerprint.hash or changed_files(record, job.outputs, digests):
        return False
    if any(record.made_from.get(part) != now[part] for part in ("parameters", "code")):
        return False
    was = record.made_from["made_from"]
    return was.keys() == now["made_from"].keys() and all(
        was[name] in (hash, *before.get(name, ())) for name, hash in now["made_from"].items()
    )

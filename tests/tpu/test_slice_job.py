"""The folder in which controller and hosts tell each other things."""

import itertools
import tarfile

import pytest

from relu_sparsity.errors import UserError
from relu_sparsity.tpu.slice_job import (
    LOG_PIECE,
    HostReport,
    JobDescription,
    SliceJob,
    write_bundle,
)


def test_what_is_written_is_read(tmp_path):
    job = SliceJob(tmp_path / "jobs" / "a-slice")
    assert job.name == "a-slice"
    assert job.last_attempt() == 0
    assert job.read_log(1, 0) == b""
    described = JobDescription(
        command=["train", "--run", "baseline"],
        done_file="runs/done",
        run="baseline",
        seed=0,
        scale="tpu",
        poll_seconds=1.5,
    )
    job.describe(described)
    assert job.description() == described
    reports = [HostReport(worker, 16, "running", 12.5, 0) for worker in (0, 1, 10)]
    for report in reversed(reports):
        job.report(2, report)
    assert job.reports(2) == reports
    assert job.reports(1) == []
    assert job.last_attempt() == 2
    job.ask_to_stop(2)
    assert job.is_asked_to_stop(2)
    assert not job.is_asked_to_stop(3)


def test_a_log_of_many_pieces_is_whole_and_only_what_is_new_is_written(tmp_path):
    job = SliceJob(tmp_path / "jobs" / "a-slice")
    lines = b"".join(b"line %d of a long log\n" % number for number in range(150_000))
    cuts = [0, 10, LOG_PIECE, LOG_PIECE + 1, 2 * LOG_PIECE + 7, len(lines)]
    assert len(lines) > 3 * LOG_PIECE
    published = 0
    with (tmp_path / "printed").open("a+b") as printed:
        for start, end in itertools.pairwise(cuts):
            printed.write(lines[start:end])
            printed.flush()
            published = job.write_log(1, 0, printed, start=published)
            assert published == end
            assert job.read_log(1, 0, start=start) == lines[start:end]
        pieces = sorted((job.folder / "attempt1").glob("host0.*.log"))
        assert [piece.name for piece in pieces] == [f"host0.{k:04d}.log" for k in range(4)]
        for piece in pieces:
            piece.unlink()
        printed.write(b"the last line\n")
        printed.flush()
        job.write_log(1, 0, printed, start=published)
    assert [piece.name for piece in (job.folder / "attempt1").glob("host0.*")] == ["host0.0003.log"]


def test_a_bundle_holds_what_hosts_need(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "src" / "package"
    (package / "__pycache__").mkdir(parents=True)
    (package / "module.py").write_text("value = 1\n")
    (package / "__pycache__" / "module.pyc").write_text("compiled")
    (tmp_path / "params.yaml").write_text("scale: tpu\n")
    paths = [package.parent.relative_to(tmp_path), (tmp_path / "params.yaml").relative_to(tmp_path)]
    write_bundle(paths, {"expected.json": b"{}"}, tmp_path / "store" / "bundle.tar.gz")
    with tarfile.open(tmp_path / "store" / "bundle.tar.gz") as archive:
        assert sorted(archive.getnames()) == [
            "expected.json", "params.yaml", "src/package/module.py",
        ]  # fmt: skip
        member = archive.extractfile("src/package/module.py")
        assert member is not None
        assert member.read() == b"value = 1\n"
    with pytest.raises(UserError, match=r"widths.json: is missing; the hosts of the slice need it"):
        write_bundle([paths[0], package.relative_to(tmp_path) / "widths.json"], {}, tmp_path / "b")

"""TensorBoard's events, read back from the files."""

import json
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboardX import event_file_writer
from tensorboardX.proto.event_pb2 import Event, SessionLog

from relu_sparsity.errors import UserError
from relu_sparsity.metrics import METRICS
from relu_sparsity.training.loop import train
from relu_sparsity.training.progress import Progress


def events_of(path):
    """The records of an event file: length, a checksum, the event, another checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 16 + length


def curves(folder):
    """The steps and values of each curve as TensorBoard shows them: without what was done twice."""
    shown = {}
    # Their names begin with the second in which they were opened.
    events = [each for path in sorted(folder.iterdir()) for each in events_of(path)]
    for event in sorted(events, key=lambda event: event.wall_time):
        if event.session_log.status == SessionLog.START:
            shown = {
                tag: [pair for pair in pairs if pair[0] < event.step]
                for tag, pairs in shown.items()
            }
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return shown


@pytest.fixture
def with_events(config):
    training = config.training.model_copy(update={"tensorboard": True, "log_every_steps": 3})
    return config.model_copy(update={"training": training})


def test_a_run_that_goes_on_has_every_point_once(
    make_job, with_events, written, tmp_path, monkeypatch
):
    # Events have their own times; files all have a name of one second.
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: 1.7e9))
    expected = written(train(make_job("without"), num_devices=1))
    assert not (tmp_path / "without/tensorboard").exists()
    # It ends as by a kill: after the line of step 6, with a checkpoint of step 4.
    branches = {7: tmp_path / "branch"}
    train(make_job("run", config=with_events, branches=branches), until=7, num_devices=1)
    folder = tmp_path / "run/tensorboard"
    before = curves(folder)
    assert [step for step, _ in before["training/loss"]] == [3, 6]
    history = train(make_job("run", config=with_events), num_devices=1)
    shown = curves(folder)
    assert [step for step, _ in shown["training/loss"]] == [3, 6, 9, 12, 14]
    for tag, values in (("loss", history.eval_loss), ("accuracy", history.eval_accuracy)):
        steps, numbers = zip(*shown[f"heldout/{tag}"], strict=True)
        assert list(steps) == history.eval_steps
        assert numbers == pytest.approx([float(each.mean()) for each in values])
    # Of a step that was measured, at every third.
    use = np.stack(history.unit_use)[:, :, list(METRICS).index("batch_use")]
    for layer in range(use.shape[1]):
        steps, numbers = zip(*shown[f"batch_use/layer{layer}"], strict=True)
        assert steps == (3, 6, 9, 12, 14)
        assert set(np.float32(numbers)) <= set(np.float32(use[:, layer]))
    assert written(history) == expected
    # What `relu-sparsity status` shows is the newest of what was measured.
    told = json.loads((tmp_path / "run/progress.json").read_text())["unit_use"]
    assert set(told) == set(METRICS)
    # A step is read while the next one runs.
    assert np.float32(told["batch_use"]).tolist() in np.float32(use[-2:]).tolist()


def test_without_the_package_it_says_what_to_install(make_job, with_events, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"tensorboard: true: tensorboardX is not installed; .*pip"):
        train(make_job(config=with_events), num_devices=1)


def test_a_bucket_is_refused(make_job, with_events):
    from etils import epath

    job = make_job(config=with_events, progress=epath.Path("gs://bucket/run/progress.json"))
    with pytest.raises(UserError, match="not written to a bucket"):
        train(job, num_devices=1)


def test_a_run_that_goes_on_still_tells_what_was_known_of_its_model(make_job, config, tmp_path):
    branches = {7: tmp_path / "branch"}
    train(make_job("run", config=config, branches=branches), until=7, num_devices=1)
    state = tmp_path / "run/progress.json"
    before = json.loads(state.read_text())

    def begun(first_step):
        with Progress(
            "run", config, throughput=tmp_path / "throughput.csv", state=state,
            first_step=first_step, ngram_losses={},
        ):  # fmt: skip
            return json.loads(state.read_text())

    known = begun(6)
    assert known["step"] == 6
    shown = ("loss", "heldout_loss", "unit_use")
    assert {key: known[key] for key in shown} == {key: before[key] for key in shown}
    assert "loss" not in begun(0), "another training"

"""What one process does where several would have to agree; tests/workflow has the several."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from relu_sparsity import distributed
from relu_sparsity.errors import USER_ERROR_STATUS, TryAgain, UserError
from relu_sparsity.training.process import OtherProcesses


def test_one_process_is_the_leader_and_agrees_with_itself():
    assert distributed.is_leader()
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    assert distributed.ask_leader(lambda: 7) == 7
    distributed.barrier("anything")

    def fail():
        raise UserError("as it is")

    with pytest.raises(UserError, match="as it is"):
        distributed.ask_leader(fail)


SEVERAL = """
import sys
from relu_sparsity import distributed
from relu_sparsity.cli import main
from relu_sparsity.errors import TryAgain, UserError

distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))

def unreachable():
    raise TryAgain("the store does not answer")

def job():
    with distributed.fail_together():
        try:
            distributed.ask_leader(unreachable)
        except TryAgain as error:
            print(error.is_everyones, flush=True)
        if not distributed.is_leader():
            raise UserError("a file of this host is missing")
        distributed.barrier("waits for the other")

import relu_sparsity.cli
relu_sparsity.cli.app = job
main()
"""


def test_an_error_of_one_host_ends_all_at_once_with_its_message():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    leader, other = (
        subprocess.Popen(
            [sys.executable, "-c", SEVERAL, address, str(number)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    )
    output, errors = other.communicate(timeout=60)
    assert other.returncode == USER_ERROR_STATUS
    assert output.endswith("\nTrue\n"), "before it Gloo says how it is connected"
    assert "error: a file of this host is missing\n" in errors
    assert "Traceback" not in errors
    assert leader.communicate(timeout=60)[0].endswith("\nTrue\n")
    assert leader.returncode not in (0, USER_ERROR_STATUS)


@pytest.mark.parametrize(("variables", "status"), [({"RELU_SPARSITY_SLICE": "x"}, 75), ({}, 1)])
def test_on_a_slice_any_other_error_is_worth_another_try(variables, status):
    script = (
        "from relu_sparsity import distributed\n"
        "with distributed.fail_together(): raise OSError('HttpError: 503')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | variables, capture_output=True, check=False
    )
    assert ended.returncode == status
    assert b"OSError: HttpError: 503" in ended.stderr


def test_what_the_leader_holds_is_left_again():
    events = []

    class Held:
        def __enter__(self):
            events.append("entered")

        def __exit__(self, *_):
            events.append("left")

    with distributed.held_by_leader(Held()):
        events.append("inside")
    assert events == ["entered", "inside", "left"]


def test_a_second_sigterm_does_not_end_the_save():
    """SLURM sends two in a row."""
    before = signal.getsignal(signal.SIGTERM)
    with distributed.stop_signals() as stop_requested:
        assert not stop_requested(3)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop_requested(4)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def as_in_a_terminal():
    """Python's own handler for Ctrl-C, which it does not install in a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("as_in_a_terminal")
def test_a_second_ctrl_c_does_not_wait():
    with distributed.stop_signals() as stop_requested:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requested(0)
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)


@pytest.mark.parametrize(("tasks", "several"), [(None, False), ("1", False), ("2", True)])
def test_srun_is_noticed_where_it_starts_several(monkeypatch, tasks, several):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    if tasks is not None:
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
    assert distributed.started_by_srun() == several


def test_processes_that_cannot_find_each_other_say_what_they_need(monkeypatch):
    def initialize(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
    with pytest.raises(TryAgain, match=r"coordinator_address.*allowed: --distributed on a TPU"):
        distributed.initialize()


def test_several_processes_without_an_address_are_refused():
    alone = OtherProcesses(None, None, None, None, heartbeat_timeout=60, hang_timeout=0)
    alone.connect()
    with pytest.raises(UserError, match=r"--num-processes 2: .* allowed: both, or --distributed"):
        replace(alone, num_processes=2, process_id=1).connect()

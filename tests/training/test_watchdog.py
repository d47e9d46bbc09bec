"""A training process that hangs ends itself; one that gets on, however slowly, does not."""

import subprocess
import sys
import textwrap

from relu_sparsity.errors import TRY_AGAIN_STATUS


def run(body):
    """A process whose training is the body; a step may take a second."""
    program = "import time\nfrom relu_sparsity.training import watchdog\nwatchdog.enable(1)\n"
    return subprocess.run(
        [sys.executable, "-c", program + textwrap.dedent(body)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_a_process_without_a_step_ends_and_tells_where_it_hung():
    done = run("""
        def read_from_a_bucket():
            time.sleep(50)

        watchdog.begin()
        watchdog.take_step()
        read_from_a_bucket()
    """)
    assert done.returncode == TRY_AGAIN_STATUS, done.stderr
    assert "error: no step in 0:00:01" in done.stderr
    assert "allowed: --hang-timeout, 1 s" in done.stderr.lower()
    assert "in read_from_a_bucket" in done.stderr


def test_the_first_step_has_more_time_and_is_awaited_too():
    done = run("""
        watchdog.begin()
        time.sleep(3)
        print("still here", flush=True)
        time.sleep(50)
    """)
    assert done.returncode == TRY_AGAIN_STATUS, done.stderr
    assert "still here" in done.stdout
    assert "error: no step in 0:00:06" in done.stderr


def test_what_a_run_takes_for_its_slowest_step_is_allowed_again():
    """An evaluation of two seconds is known after the first one."""
    done = run("""
        watchdog.begin()
        watchdog.take_step()
        time.sleep(0.9)
        watchdog.take_step()
        time.sleep(2)
        watchdog.take_step()
        time.sleep(3.5)
        watchdog.end()
        time.sleep(2)
        print("at the end")
    """)
    assert done.returncode == 0, done.stderr
    assert "at the end" in done.stdout

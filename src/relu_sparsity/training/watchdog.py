"""Ends a training process that hangs, so that whoever started it can start it again.

A read that never returns, or a collective that another host never joins, raises nothing: the
process lives, says so, and gets no further. Only the missing steps tell.
"""

import faulthandler
import math
import os
import sys
import threading
import time

from relu_sparsity.durations import duration
from relu_sparsity.errors import TRY_AGAIN_STATUS

# Restoring and compiling come before the first step.
_START_FACTOR = 6
# An iteration may hold an evaluation or a checkpoint: the slowest one tells what is usual.
_SLOWEST_FACTOR = 3


class _Watchdog:
    """Waits for ever until it is enabled."""

    def __init__(self) -> None:
        self.hang_timeout = math.inf
        self._slowest = 0.0
        self._last_step: float | None = None
        self._limit = self._deadline = math.inf

    def begin(self) -> None:
        """Tells that a training begins: its first step is awaited."""
        self._last_step = None
        self._allow(_START_FACTOR * self.hang_timeout)

    def take_step(self) -> None:
        """Tells that the training has got a step further: the next one is awaited."""
        now = time.monotonic()
        if self._last_step is not None:
            self._slowest = max(self._slowest, now - self._last_step)
        self._last_step = now
        self._allow(max(self.hang_timeout, _SLOWEST_FACTOR * self._slowest))

    def end(self) -> None:
        """Tells that the training is over: nothing is awaited any more."""
        self._deadline = math.inf

    def _allow(self, seconds: float) -> None:
        self._limit, self._deadline = seconds, time.monotonic() + seconds

    def watch(self) -> None:
        """Ends this process when its training hangs."""
        while time.monotonic() < self._deadline:
            time.sleep(min(1.0, self.hang_timeout / 10))
        print(
            f"error: no step in {duration(self._limit)}: the process hangs and ends itself, to be "
            f"started again. Allowed: --hang-timeout, {self.hang_timeout:g} s, or "
            f"{_SLOWEST_FACTOR} times the slowest step so far. This is where it hangs:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
        # No other way out: Python's own would wait for what hangs.
        os._exit(TRY_AGAIN_STATUS)


_watchdog = _Watchdog()
begin, take_step, end = _watchdog.begin, _watchdog.take_step, _watchdog.end


def enable(hang_timeout: float) -> None:
    """Ends this process with `TRY_AGAIN_STATUS`, and all stacks, when its training hangs.

    Args:
      hang_timeout: Seconds without a step. Three times the slowest step so far are always allowed,
        and six times as long before the first one.
    """
    _watchdog.hang_timeout = hang_timeout
    threading.Thread(target=_watchdog.watch, name="watchdog", daemon=True).start()

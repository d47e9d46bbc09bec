"""Processes that end with the one that started them."""

import ctypes
import signal
import sys


def stop_with_parent(number: signal.Signals = signal.SIGTERM) -> None:
    """Asks the kernel to send this process a signal when its parent dies. Only Linux can."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, number)

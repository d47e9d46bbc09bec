"""What the operating system does for the processes of jobs."""

import ctypes
import os
import signal
import sys


def stop_with_parent(number: signal.Signals = signal.SIGTERM, parent: int | None = None) -> None:
    """Asks the kernel to send this process a signal when its parent dies. Only Linux can.

    Args:
      number: The signal.
      parent: The process that has started this one; if it is dead already, the signal comes now.
    """
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, number)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), number)


def use_huge_pages() -> None:
    """Lets glibc ask for huge pages in the processes that this one starts from now on.

    XLA's CPU backend takes a step's temporary memory from the operating system and gives it back,
    step by step: tens of megabytes, which the kernel hands out as single pages of zeros. With huge
    pages a step takes up to a third less time. Other C libraries do not read this.
    """
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")

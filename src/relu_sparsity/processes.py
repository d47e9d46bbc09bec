"""What the operating system does for the processes of jobs."""

import ctypes
import os
import signal
import sys
import time


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


def benchmark() -> str:
    """What this process has taken so far, as a table of one row.

    The columns are some of those of Snakemake's benchmarks: `s`, seconds since it started, up to
    one too many, as Linux tells the time of its own start in whole seconds; `max_rss`, the most
    memory that it had, in MiB; `cpu_time`, seconds of processor time. Snakemake itself measures its
    children, but a job may run in a fork of another process.
    """
    import resource

    import psutil

    seconds = time.time() - psutil.Process().create_time()
    used = resource.getrusage(resource.RUSAGE_SELF)
    max_rss = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    cpu_time = used.ru_utime + used.ru_stime
    return f"s\tmax_rss\tcpu_time\n{seconds:.2f}\t{max_rss:.2f}\t{cpu_time:.2f}\n"

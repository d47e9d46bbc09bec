import io
import os
import subprocess
import sys
import time

import pandas as pd
import pytest

from relu_sparsity.processes import benchmark, use_huge_pages

PRINT = [sys.executable, "-c", "import os; print(os.environ['GLIBC_TUNABLES'])"]


@pytest.mark.parametrize(
    ("users", "wanted"),
    [(None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.check=0", "glibc.malloc.check=0")],
)
def test_processes_get_huge_pages_unless_the_user_says_otherwise(monkeypatch, users, wanted):
    if users is None:
        monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    else:
        monkeypatch.setenv("GLIBC_TUNABLES", users)
    use_huge_pages()
    assert subprocess.check_output(PRINT, text=True).strip() == wanted


def test_a_benchmark_is_of_this_process_alone():
    began = time.time()
    end, start = os.pipe()
    ballast = bytearray(2**27)
    pid = os.fork()
    if not pid:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
        os.write(start, benchmark().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    [row] = pd.read_csv(io.BytesIO(os.read(end, 4096)), sep="\t").to_dict("records")
    assert list(row) == ["s", "max_rss", "cpu_time"]
    # Pages that were its parent's are its own too: as much as ps would show.
    assert len(ballast) / 2**20 < row["max_rss"] < 4096
    assert 0.3 <= row["cpu_time"] < 1.5
    # Linux tells the time of its own start in whole seconds.
    assert 0.29 <= row["s"] < time.time() - began + 1.1

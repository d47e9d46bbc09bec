import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from repository import PARAMS, ROOT

from relu_sparsity.forkserver import ADDRESS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the server")


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


class Served:
    """A server of a copy of the code, and its clients."""

    def __init__(self, folder, slow_line=None, broken_line=None):
        self.source = folder / "src"
        shutil.copytree(ROOT / "src" / "relu_sparsity", self.source / "relu_sparsity")
        if slow_line is not None:
            count = 0
            for module in (self.source / "relu_sparsity").glob("fork*.py"):
                text, found = re.subn(
                    rf"(?m)^( *){re.escape(slow_line)}$",
                    r"\g<0>\n\1import time\n\1time.sleep(0.5)",
                    module.read_text(),
                )
                count += found
                module.write_text(text)
            assert count == 1
        if broken_line is not None:
            server = self.source / "relu_sparsity" / "forkserver.py"
            assert broken_line in server.read_text()
            server.write_text(server.read_text().replace(broken_line, "raise BlockingIOError"))
        address = folder / "socket"
        self.environment = os.environ | {"PYTHONPATH": str(self.source), ADDRESS: str(address)}
        self.server = self.start("fork-server", str(address), str(os.getpid()))
        wait_for(address.exists)

    def stop(self):
        self.server.terminate()
        self.server.wait()

    def start(self, *arguments, folder=ROOT, **environment):
        return subprocess.Popen(
            [sys.executable, "-m", "relu_sparsity", *arguments],
            cwd=folder,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def start_blocked(self, folder):
        """A job that waits for its parameters, and its process, a child of the server."""
        os.mkfifo(folder / "params.yaml")
        client = self.start("figures", "--params", str(folder / "params.yaml"))
        [job] = wait_for(lambda: children(self.server.pid))
        return client, int(job)

    def start_waiting(self, folder):
        """The same, when the job has got as far as to wait.

        Before, it passes code of others that swallows a KeyboardInterrupt, as JAX does where it
        helps the garbage collector.
        """
        client, job = self.start_blocked(folder)
        stat = Path(f"/proc/{job}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S")
        return client, job


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("served"))
    yield served
    served.stop()


def test_a_job_has_its_clients_files_folder_and_status(served, tmp_path):
    client = served.start("figures", "--figure", "fig99")
    output, errors = client.communicate(timeout=60)
    assert (client.returncode, output) == (1, "")
    assert errors.startswith("error: figure 'fig99' is not one of this scale's")
    elsewhere = served.start("figures", folder=tmp_path)
    assert "params.yaml: no such file" in elsewhere.communicate(timeout=60)[1]


def test_a_job_has_its_clients_environment(served, tmp_path):
    document = yaml.safe_load(PARAMS.read_text())
    document["scales"]["smoke"]["tokenizer"] = {"model": "~/own.model", "vocab_size": 512}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    client = served.start("figures", folder=tmp_path, HOME="/of_the_client")
    assert "/of_the_client/own.model" in client.communicate(timeout=60)[1]


def test_many_jobs_at_once(served):
    clients = [served.start("tables", "--table", f"table{99 + i}") for i in range(8)]
    for i, client in enumerate(clients):
        assert f"'table{99 + i}'" in client.communicate(timeout=60)[1]
    wait_for(lambda: not children(served.server.pid))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_job_and_its_end_the_caller(served, tmp_path, number):
    client, job = served.start_waiting(tmp_path)
    client.send_signal(number)
    client.communicate(timeout=60)
    # Typer ends with 130 at Ctrl-C.
    assert client.returncode == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}[number]
    wait_for(lambda: not Path(f"/proc/{job}").exists())


@pytest.mark.parametrize(
    "slow_line",
    [
        pytest.param("socket.send_fds(connection, [request], [0, 1, 2])", id="client"),
        pytest.param("processes.stop_with_parent(parent=server)", id="job"),
    ],
)
def test_a_signal_that_comes_before_the_job_is_set_up_is_not_lost(tmp_path, slow_line):
    served = Served(tmp_path, slow_line)
    try:
        client, job = served.start_blocked(tmp_path)
        client.send_signal(signal.SIGINT)
        client.communicate(timeout=60)
        assert client.returncode == 130
        wait_for(lambda: not Path(f"/proc/{job}").exists())
    finally:
        served.stop()


def test_where_the_system_has_no_process_left_only_that_job_starts_by_itself(tmp_path):
    served = Served(tmp_path, broken_line="pid = os.fork()")
    try:
        for _ in range(2):
            client = served.start("figures", "--figure", "fig99")
            assert "figure 'fig99' is not one of" in client.communicate(timeout=60)[1]
        assert served.server.poll() is None
    finally:
        served.stop()


def test_an_editors_lock_in_the_code_ends_nobody_elses_job(tmp_path):
    """Emacs's is a link that leads nowhere. While it is there, jobs start by themselves."""
    served = Served(tmp_path)
    try:
        client, job = served.start_waiting(tmp_path)
        (served.source / "relu_sparsity" / ".#runs.py").symlink_to("me@host.1:2")
        other = served.start("figures", "--figure", "fig99")
        assert "figure 'fig99' is not one of" in other.communicate(timeout=60)[1]
        assert served.server.poll() is None
        assert Path(f"/proc/{job}").exists()
        client.kill()
        client.communicate(timeout=60)
    finally:
        served.stop()


def test_a_client_that_is_gone_when_it_is_refused_ends_nobody_else(served):
    request = json.dumps([["relu-sparsity", "train"], str(ROOT), {"OTHER": "environment"}])
    for _ in range(3):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(served.environment[ADDRESS])
            socket.send_fds(connection, [request.encode()], [0, 1, 2])
    client = served.start("figures", "--figure", "fig99")
    assert "figure 'fig99' is not one of" in client.communicate(timeout=60)[1]
    assert served.server.poll() is None


def test_a_job_ends_with_its_client(served, tmp_path):
    client, job = served.start_blocked(tmp_path)
    client.kill()
    client.communicate(timeout=60)
    wait_for(lambda: not Path(f"/proc/{job}").exists())


def test_a_job_whose_process_is_killed_has_failed(served, tmp_path):
    client, job = served.start_blocked(tmp_path)
    os.kill(job, signal.SIGKILL)
    client.communicate(timeout=60)
    assert client.returncode == -signal.SIGKILL


def test_a_server_whose_parent_is_dead_already_ends(served, tmp_path):
    server = served.start("fork-server", str(tmp_path / "socket"), str(served.server.pid))
    server.communicate(timeout=60)
    assert server.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("environment", "is_served"),
    [
        pytest.param({}, True, id="alike"),
        pytest.param({"SHLVL": "9"}, True, id="shell"),
        pytest.param({"JAX_ENABLE_X64": "1"}, False, id="jax"),
        pytest.param({"SLURM_JOB_ID": "1"}, False, id="slurm"),
    ],
)
def test_what_trains_is_a_fork_of_a_server_with_the_same_environment(
    served, tmp_path, environment, is_served
):
    params = tmp_path / "params.yaml"
    os.mkfifo(params)
    client = served.start(
        "train", "--run", "nothing", "--threads", "1", "--params", str(params), **environment
    )
    # It opens when the job reads its parameters.
    with params.open("w") as pipe:
        forks = children(served.server.pid)
        pipe.write((PARAMS).read_text())
    assert "run 'nothing' is not in params.yaml" in client.communicate(timeout=60)[1]
    assert len(forks) == is_served


@pytest.mark.whole
def test_a_job_of_snakemake_that_trains_is_a_fork(tmp_path):
    params = tmp_path / "params.yaml"
    os.mkfifo(params)
    (tmp_path / "Snakefile").write_text(
        "import os, time\n"
        "from relu_sparsity import forkserver\n"
        "onstart:\n"
        "    forkserver.start()\n"
        "    while not os.path.exists(os.environ[forkserver.ADDRESS]):\n"
        "        time.sleep(0.05)\n"
        "rule train:\n"
        "    threads: 1\n"
        f"    shell: '{sys.executable} -m relu_sparsity train --run nothing --threads 1"
        f" --params {params}'\n"
    )
    snakemake = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    with params.open("w") as pipe:
        [server] = [
            child
            for child in children(snakemake.pid)
            if "fork-server" in Path(f"/proc/{child}/cmdline").read_text()
        ]
        assert len(children(server)) == 1
        pipe.write((PARAMS).read_text())
    assert "run 'nothing' is not in params.yaml" in snakemake.communicate(timeout=60)[1]


# The last of them: it ends what the server is good for.
def test_edited_code_is_not_run_by_a_server_of_before(served):
    module = served.source / "relu_sparsity" / "options.py"
    text = module.read_text()
    module.write_text(text.replace("is not one of this scale's", "is unheard of"))
    client = served.start("figures", "--figure", "fig99")
    assert "figure 'fig99' is unheard of" in client.communicate(timeout=60)[1]


def test_without_its_server_a_job_runs_by_itself(served):
    served.stop()
    client = served.start("figures", "--figure", "fig99")
    assert "error: figure 'fig99'" in client.communicate(timeout=60)[1]

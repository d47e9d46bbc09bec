"""A real SLURM cluster of two nodes, all of it on this machine and gone afterwards."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from relu_sparsity.processes import stop_with_parent

# Debian has the daemons in a folder that a plain user's PATH lacks.
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "squeue", "sbatch", "srun", "scancel")
START_SECONDS = 60

# JAX finds its coordinator by the first node's name, which thus has to resolve: this machine's
# does. The second name is only for SLURM, which is told the address.
HOST = socket.gethostname().partition(".")[0]
NODES = (HOST, f"{HOST}-second")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its credential has expired: two minutes, unless told.
AuthInfo=socket={munge_socket},cred_expire=5
CredType=cred/munge
SlurmctldPort={controller_port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
# Neither control groups nor a database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# More processors and memory than this machine may have.
SlurmdParameters=config_overrides
# Jobs start at once.
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait={kill_wait}
# squeue tells about a job that has ended for so long.
MinJobAge=300
SlurmctldTimeout=60
SlurmdTimeout=60
MessageTimeout=60
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> str | None:
    """Says which programs a cluster needs and this machine lacks."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"needs {', '.join(absent)} (packages slurm-wlm and munge)"
    try:
        socket.getaddrinfo(HOST, None)
    except OSError:
        return f"needs {HOST}, this machine's name, to have an address"
    return None


class SlurmCluster:
    """A running cluster.

    A job of the partition `urgent` preempts the jobs of `main`, which are requeued.

    Attributes:
      folder: Its configuration, state and logs.
      environment: What a command needs to talk to it.
    """

    def __init__(self, folder: Path, cpus: int = 4, kill_wait: int = 30):
        """Starts it and waits until both nodes are idle.

        Args:
          folder: A folder of its own.
          cpus: What each node says it has.
          kill_wait: The seconds between SIGTERM and SIGKILL.
        """
        if reason := missing():
            raise RuntimeError(f"a SLURM cluster {reason}")
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state").mkdir()
        # The path of a socket has at most 107 characters, which a test's folder may exceed.
        self._short = Path(tempfile.mkdtemp(prefix="munge-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        own = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join([str(self._write_srun()), PATH]),
        }
        # A cluster's own job that runs the tests is none of this cluster's business.
        others = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        self.environment = others | own
        try:
            self._start(cpus, kill_wait)
        except BaseException:
            self.stop()
            raise

    def run(self, *command: str, timeout: float = 60, status: int | None = 0) -> str:
        """Runs a command on the cluster and returns what it prints."""
        done = subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert status is None or done.returncode == status, done.stdout
        return done.stdout

    def stop(self) -> None:
        """Ends all daemons and everything that they or this cluster's users have started."""
        # The controller first, so that no job starts any more; munged last, as the others use it.
        for name in ("slurmctld", *NODES):
            self._end(name)
        # A job's own daemon is nobody's child, and outlives its node's.
        for process in self._processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._end("munged")
        shutil.rmtree(self._short, ignore_errors=True)

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _processes(self) -> set[int]:
        """What runs with this cluster's environment, and the children of that."""
        munged = self._daemons.get("munged")
        others = {os.getpid(), munged.pid if munged else 0}
        parents = _parents()
        found = {process for process in parents if self._is_mine(process)} - others
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def _is_mine(self, process: int) -> bool:
        try:
            return os.fsencode(f"{self.folder}/") in Path(f"/proc/{process}/environ").read_bytes()
        except OSError:
            return False

    def _start(self, cpus: int, kill_wait: int) -> None:
        munge_socket = self._start_munge()
        controller, *ports = _free_ports(1 + len(NODES))
        nodes = [
            f"NodeName={name} NodeAddr=127.0.0.1 Port={port}"
            f" CPUs={cpus} RealMemory=64000 State=UNKNOWN"
            for name, port in zip(NODES, ports, strict=True)
        ]
        config = CONFIG.format(
            host=HOST,
            user=pwd.getpwuid(os.geteuid()).pw_name,
            munge_socket=munge_socket,
            controller_port=controller,
            folder=self.folder,
            kill_wait=kill_wait,
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(config)
        self._daemon("slurmctld", "slurmctld", "-D")
        for name in NODES:
            self._daemon(name, "slurmd", "-D", "-N", name)
        self._wait("both nodes are idle", self._nodes_are_idle)

    def _write_srun(self) -> Path:
        """Writes an srun that finds this cluster from within a job of Snakemake.

        Its plugin takes SLURM_CONF away there, which only matters where the configuration is not
        at its usual place.

        Returns:
          The folder that it is in.
        """
        folder = self.folder / "bin"
        folder.mkdir()
        script = folder / "srun"
        found = shutil.which("srun", path=PATH)
        script.write_text(
            f"#!/bin/sh\nSLURM_CONF='{self.folder}/slurm.conf' exec '{found}' \"$@\"\n"
        )
        script.chmod(0o755)
        return folder

    def _start_munge(self) -> Path:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        socket_path = self._short / "socket"
        # Forced, because it dislikes that nobody else may enter the folder of its socket.
        self._daemon(
            "munged",
            "munged",
            "--foreground",
            "--force",
            f"--socket={socket_path}",
            f"--key-file={key}",
            f"--pid-file={self._short}/munged.pid",
            f"--log-file={self._short}/munged.log",
            f"--seed-file={self._short}/munged.seed",
        )
        self._wait("munged listens", socket_path.exists)
        return socket_path

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the tests is not meant for it: stop() ends it, or the tests' own end.
                start_new_session=True,
                preexec_fn=stop_with_parent,
            )

    def _nodes_are_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--format=%N %t", status=None)
        return set(states.splitlines()) == {f"{name} idle" for name in NODES}

    def _wait(self, what: str, holds: Callable[[], bool]) -> None:
        """Waits until something holds; fails if it takes too long or a daemon has ended."""
        end = time.monotonic() + START_SECONDS
        while not holds():
            ended = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if ended or time.monotonic() > end:
                why = f"{', '.join(ended)} ended" if ended else f"waited {START_SECONDS} seconds"
                raise RuntimeError(f"no SLURM cluster ({what}: {why})\n{self.logs()}")
            time.sleep(0.1)

    def logs(self, lines: int = 20) -> str:
        """The last lines of every daemon's log."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("*.out"), *self._short.glob("*.log")]
        tails = {
            path.name: path.read_text(errors="replace").splitlines()[-lines:]
            for path in sorted(paths)
        }
        return "\n".join(f"--- {name}\n" + "\n".join(tail) for name, tail in tails.items() if tail)


@contextmanager
def slurm_cluster(folder: Path, **options: int) -> Iterator[SlurmCluster]:
    """A cluster for the length of a `with`."""
    cluster = SlurmCluster(folder, **options)
    try:
        yield cluster
    finally:
        cluster.stop()


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _parents() -> dict[int, int]:
    """Every process, and the one that has started it."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
    return found

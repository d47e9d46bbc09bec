"""Jobs start in a fork of a process that has imported everything.

To draw a figure takes a fifth of a second, after a second of imports, and what trains imports for
two. So the workflow starts one server, which imports once and forks for each job. Only on Linux.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from relu_sparsity import fingerprint, processes
from relu_sparsity.fingerprint import NAME, PACKAGE, PACKAGES
from relu_sparsity.forkclient import ADDRESS, FORWARDED, LIMIT, TRAINING

# So many short jobs are worth a process that imports everything.
ENOUGH_JOBS = 5
_MODULES = (
    "cli", "data.builders", "paper.extract", "paper.figures", "perform", "report", "training.run",
)  # fmt: skip
# JAX, Snakemake and DVC close at the end of their process what they have opened.
_ENDS_BY_ITSELF = TRAINING | {"record", "report"}
# A shell's own, and what tells a job where this server is.
_SAYS_NOTHING = frozenset({"_", "OLDPWD", "PWD", "SHLVL", ADDRESS})
# Linux allows a socket no longer name.
_MAX_ADDRESS = 107


def start() -> None:
    """Starts a server, which ends with this process, and tells this one's children its address."""
    if sys.platform != "linux":
        return
    folder = tempfile.mkdtemp(prefix="relu-sparsity-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = os.path.join(folder, "socket")
    if len(address) > _MAX_ADDRESS:
        return
    # As Snakemake has it for a job of one thread; a fork would not take more threads along.
    libraries = ("GOTO", "MKL", "NUMEXPR", "OMP", "OPENBLAS")
    as_job = {f"{name}_NUM_THREADS": "1" for name in libraries} | {"VECLIB_MAXIMUM_THREADS": "1"}
    as_job |= dict.fromkeys(("TEMP", "TEMPDIR", "TMP", "TMPDIR"), tempfile.gettempdir())
    server = subprocess.Popen(
        [sys.executable, "-m", NAME, "fork-server", address, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        env=os.environ | as_job,
    )
    atexit.register(server.terminate)
    os.environ[ADDRESS] = address


class Server:
    """Forks for each request that comes to an address.

    Args:
      address: Where its socket is to be.
      parent: The process that has started it, and that it ends with.
    """

    def __init__(self, address: str, parent: int) -> None:
        processes.stop_with_parent(parent=parent)
        # A Ctrl-C is for the clients.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._versions = _versions()
        self._environment = _meaning(os.environ)
        for module in _MODULES:
            importlib.import_module(f"{NAME}.{module}")
        # The report is Snakemake's, whose parser asks all plugins for their options.
        importlib.import_module("snakemake.cli").get_argument_parser()
        # A job would need longer for this than to draw a figure.
        fingerprint.read_all()
        gc.collect()
        gc.freeze()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        self._listener.listen(64)
        # A fork would share the kernel's memory of an epoll.
        self._selector = selectors.PollSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def serve(self, run: Callable[[], None]) -> None:
        """Answers requests; returns only in a fork.

        Args:
          run: Runs the command line of a job, in a fork.
        """
        while True:
            for key, _ in self._selector.select():
                handle: Callable[..., bool] = key.data
                if handle(key.fileobj):
                    if sys.argv[1] in _ENDS_BY_ITSELF:
                        run()
                    else:
                        _run_and_exit(run)
                    return

    def _accept(self, listener: socket.socket) -> bool:
        connection, _ = listener.accept()
        request, files, *_ = socket.recv_fds(connection, LIMIT, 3)
        if not request:
            # The client was killed before it asked for anything.
            connection.close()
            return False
        try:
            return self._fork(connection, json.loads(request), files)
        finally:
            for file in files:
                os.close(file)

    def _fork(self, connection: socket.socket, request: Any, files: Sequence[int]) -> bool:
        arguments, _, environment = request
        # JAX has read its part of the environment when it was imported, and SLURM's part makes a
        # process one of several.
        is_other = arguments[1] in TRAINING and _meaning(environment) != self._environment
        # A fork would run the code of before, and say that it was that of now.
        if is_other or not self._is_of_now():
            return self._refuse(connection)
        end, alive = os.pipe()
        # The child must not lose a signal because it still ignores it as the server does.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            # The others go on; this one starts by itself, or fails by itself.
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            os.close(end)
            os.close(alive)
            return self._refuse(connection)
        if not pid:
            processes.stop_with_parent(parent=server)
            self._become(request, files)
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            return True
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        os.close(alive)
        self._selector.register(
            connection, selectors.EVENT_READ, lambda client: self._forward(client, pid)
        )
        # Its other side is open as long as the job lives.
        self._selector.register(
            end, selectors.EVENT_READ, lambda pipe: self._end(pipe, connection, pid)
        )
        return False

    def _is_of_now(self) -> bool:
        """Whether the code and the packages are those that this process has imported."""
        try:
            return _versions() == self._versions
        except (OSError, metadata.PackageNotFoundError):
            # An editor's lock file, a checkout or an installation under way. The others go on.
            return False

    @staticmethod
    def _refuse(connection: socket.socket) -> bool:
        _answer(connection, b"refused")
        connection.close()
        return False

    def _become(self, request: Any, files: Sequence[int]) -> None:
        # A Ctrl-C reaches it through its client alone.
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            if isinstance(key.fileobj, int):
                os.close(key.fileobj)
            else:
                key.fileobj.close()  # type: ignore[attr-defined]
        self._selector.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        arguments, folder, environment = request
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[:] = arguments

    def _forward(self, connection: socket.socket, pid: int) -> bool:
        number = connection.recv(1)
        if not number:
            # The client was killed.
            self._selector.unregister(connection)
        os.kill(pid, number[0] if number else signal.SIGTERM)
        return False

    def _end(self, end: int, connection: socket.socket, pid: int) -> bool:
        self._selector.unregister(end)
        os.close(end)
        _, status = os.waitpid(pid, 0)
        if connection in self._selector.get_map():
            self._selector.unregister(connection)
            _answer(connection, str(os.waitstatus_to_exitcode(status)).encode())
        connection.close()
        return False


def _answer(connection: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):  # Its client may have been killed.
        connection.send(answer)


def _versions() -> dict[str, Any]:
    """What a running process would not notice: edits of the code, other versions of packages."""
    stats = {path: path.stat() for path in PACKAGE.rglob("*") if path.suffix in (".py", ".yaml")}
    versions: dict[str, Any] = {name: metadata.version(name) for name in PACKAGES}
    return versions | {str(path): (stat.st_mtime_ns, stat.st_size) for path, stat in stats.items()}


def _meaning(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment as far as it can change what a process does."""
    return {name: value for name, value in environment.items() if name not in _SAYS_NOTHING}


def _run_and_exit(run: Callable[[], None]) -> None:
    """Ends a fork without taking all modules apart, which takes longer than to draw a figure."""
    status: Any = 1
    try:
        run()
        status = 0
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        # As Typer ends, which may not have been reached.
        status = 128 + signal.SIGINT
    except Exception:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))

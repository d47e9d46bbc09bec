"""Asks the workflow's server, where there is one, to run this process's command line in a fork.

Every job of the workflow starts here: nothing is imported that this does not need.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

ADDRESS = "RELU_SPARSITY_FORK_SERVER"
# They start by themselves in an environment that is not the server's, as on a cluster's nodes.
TRAINING = frozenset({"mask", "train"})
COMMANDS = TRAINING | {
    "claims", "data", "extract", "figures", "own", "pruning", "record", "report",
    "sensitivity", "summary", "tables", "widths",
}  # fmt: skip
LIMIT = 2**17
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


def call(arguments: Sequence[str]) -> int | None:
    """Runs a command line in a fork of the server, with this process's files and environment.

    Args:
      arguments: The command line, its program first.

    Returns:
      The exit status, negative for a signal. None: there is no server, or it is not for this
      command, or it refused, as the code was edited since it started, or as a run that is to be
      trained has another environment.
    """
    address = os.environ.get(ADDRESS)
    if address is None or not COMMANDS.intersection(arguments[1:2]):
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:

        def forward(number: int, _: Any) -> None:
            with contextlib.suppress(OSError):  # The job may just have ended.
                connection.send(bytes([number]))

        request = json.dumps([list(arguments), os.getcwd(), dict(os.environ)]).encode()
        if len(request) > LIMIT:
            return None
        # A signal that comes before it can be passed on waits until then.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
        try:
            connection.connect(address)
            socket.send_fds(connection, [request], [0, 1, 2])
            handlers = {number: signal.signal(number, forward) for number in FORWARDED}
        except OSError:
            return None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        try:
            answer = connection.recv(16)
        except ConnectionResetError:
            # A signal was on its way when the job ended; its status comes after this error.
            answer = connection.recv(16)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if not answer:
        print("error: the process that was to do this job was killed", file=sys.stderr)
        return 1
    return None if answer == b"refused" else int(answer)

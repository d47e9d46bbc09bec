"""The program `relu-sparsity`: a job of the workflow runs in a fork of its server."""

import contextlib
import os
import signal
import sys


def main() -> None:
    """Runs the command line, here or there."""
    if "--stop-with-parent" in sys.argv:
        # Its parent may die while it imports; the command itself asks once more.
        from relu_sparsity.processes import stop_with_parent

        stop_with_parent()
    # A job imports no more than it needs before it is known where it runs.
    if "RELU_SPARSITY_FORK_SERVER" in os.environ:
        from relu_sparsity import forkclient

        status = forkclient.call(sys.argv)
        if status is not None:
            if status < 0:
                with contextlib.suppress(OSError):  # SIGKILL has no other way.
                    signal.signal(-status, signal.SIG_DFL)
                os.kill(os.getpid(), -status)
            sys.exit(status)
    from relu_sparsity import cli

    cli.main()


if __name__ == "__main__":
    main()

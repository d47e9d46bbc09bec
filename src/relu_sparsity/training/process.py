"""A process that trains: its threads, the others of its run, and how it ends when it is stopped."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import typer

from relu_sparsity import processes
from relu_sparsity.errors import STOPPED_STATUS, Interrupted, UserError
from relu_sparsity.files import absolute
from relu_sparsity.layout import store_root
from relu_sparsity.training import watchdog


@dataclass(frozen=True)
class OtherProcesses:
    """How a process finds the others of its run."""

    distributed: bool | None
    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None
    heartbeat_timeout: int
    hang_timeout: int

    def connect(self) -> None:
        from relu_sparsity import distributed

        wanted = self.distributed
        if wanted is None:
            wanted = self.coordinator_address is not None or distributed.started_by_srun()
            if not wanted and (self.num_processes or 1) > 1:
                raise UserError(
                    f"--num-processes {self.num_processes}: without --coordinator-address this "
                    "process would train alone; allowed: both, or --distributed"
                )
        if not wanted:
            return
        distributed.initialize(
            self.coordinator_address,
            self.num_processes,
            self.process_id,
            heartbeat_timeout_seconds=self.heartbeat_timeout,
        )
        # Only where somebody starts it again, and where one process can hang for the others' sake.
        watchdog.enable(self.hang_timeout)
        if not distributed.is_leader():
            # All say the same.
            logging.getLogger().setLevel(logging.WARNING)


@contextlib.contextmanager
def training_process(
    threads: int | None, stop_with_parent: bool, others: OtherProcesses
) -> Iterator[None]:
    """Sets up a process that may train; a run that was asked to stop ends with `STOPPED_STATUS`."""
    if stop_with_parent:
        processes.stop_with_parent()
    _configure_jax(threads)
    others.connect()
    from relu_sparsity import distributed

    try:
        with distributed.fail_together():
            yield
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(STOPPED_STATUS) from None


def _configure_jax(threads: int | None) -> None:
    """Bounds XLA's threads and shares compiled programs between runs; call before JAX starts."""
    if threads is not None:
        # XLA sizes its thread pools by NPROC.
        os.environ["NPROC"] = str(threads)
    import jax

    settings = {
        "jax_compilation_cache_dir": os.fspath(absolute(store_root() / "compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        # JAX has read the environment when it was imported: a user's own setting is there.
        if name.upper() not in os.environ:
            jax.config.update(name, value)

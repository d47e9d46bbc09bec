"""What the processes of one run, one per host, have to agree on.

With one process everything here does nothing. The first process is the leader: it alone holds the
run's lock and writes files; the others do as it says.
"""

import contextlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from relu_sparsity.errors import (
    TRY_AGAIN_STATUS,
    USER_ERROR_STATUS,
    Interrupted,
    TryAgain,
    UserError,
)

_T = TypeVar("_T")


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    heartbeat_timeout_seconds: int = 100,
) -> None:
    """Connects this process to the others of its run; call before anything else of JAX.

    Args:
      coordinator_address: `host:port` of the first process. None asks the TPU pod, or SLURM.
      num_processes: Number of processes; None asks likewise.
      process_id: This process, from 0; None asks likewise.
      heartbeat_timeout_seconds: When a process that says nothing counts as dead, and ends the
        others.

    Raises:
      TryAgain: The processes cannot find each other.
    """
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_timeout_seconds,
            shutdown_timeout_seconds=heartbeat_timeout_seconds,
        )
    except (RuntimeError, ValueError) as error:
        raise TryAgain(
            f"the processes of the run cannot find each other ({str(error).splitlines()[0]}); "
            "allowed: --distributed on a TPU pod or in an `srun` step, or --coordinator-address, "
            "--num-processes and --process-id for every process"
        ) from error


def started_by_srun() -> bool:
    """Whether this is one of several processes of a SLURM step."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def is_leader() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes.

    Args:
      value: What JSON knows.
    """
    if jax.process_count() == 1:
        return [value]
    own = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.asarray([own.size], np.int32)).ravel()
    padded = np.pad(own, (0, int(lengths.max()) - own.size))
    rows = multihost_utils.process_allgather(padded)
    return [
        json.loads(np.asarray(row[:length], np.uint8).tobytes())
        for row, length in zip(rows, lengths, strict=True)
    ]


def ask_leader(action: Callable[[], _T]) -> _T:
    """Runs `action` in the leader only; every process returns what it returned.

    Args:
      action: Returns what JSON knows.

    Raises:
      UserError: `action` raised it in the leader.
    """
    if jax.process_count() == 1:
        return action()
    answer: dict[str, Any] = {}
    failure: BaseException | None = None
    if is_leader():
        try:
            answer = {"value": action()}
        except UserError as error:
            answer = {"error": str(error), "try_again": isinstance(error, TryAgain)}
        except BaseException as error:
            # The others must not wait for an answer that never comes.
            failure, answer = error, {"error": f"{type(error).__name__}: {error}"}
    answer = gather(answer)[0]
    if failure is not None:
        raise failure
    if "error" in answer:
        kind = TryAgain if answer.get("try_again") else UserError
        raise kind(answer["error"], is_everyones=True)
    return answer["value"]


def share(array: np.ndarray | None, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of the leader's in every process, bit by bit.

    Args:
      array: The array in the leader; None in all others.
      shape: Its shape, which every process knows.
      dtype: Its dtype.
    """
    if jax.process_count() == 1:
        assert array is not None
        return array
    size = math.prod(shape) * np.dtype(dtype).itemsize
    # As whole numbers: a sum with zeros keeps them, and would lose the sign of a float's zero.
    words = np.zeros(-(-size // 4), np.uint32)
    if array is not None:
        words.view(np.uint8)[:size] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    shared = np.asarray(multihost_utils.broadcast_one_to_all(words))
    return shared.view(np.uint8)[:size].view(dtype).reshape(shape)


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Ends this process at once when it fails, so that the others learn of it and end too.

    Python's own way out would wait for them, and they would wait for this one in the next step.
    What is not a user's error is worth another try where somebody gives it one, as on a slice.
    """
    try:
        yield
    except Interrupted:
        raise  # It comes to all processes.
    except UserError as error:
        if jax.process_count() == 1 or error.is_everyones:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(TRY_AGAIN_STATUS if isinstance(error, TryAgain) else USER_ERROR_STATUS)
    except Exception:
        if jax.process_count() == 1 and "RELU_SPARSITY_SLICE" not in os.environ:
            raise
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(TRY_AGAIN_STATUS)


@contextlib.contextmanager
def held_by_leader(context: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """Enters `context` in the leader, and leaves it when every process is done.

    Raises:
      UserError: The leader could not enter it.
    """
    with contextlib.ExitStack() as stack:
        ask_leader(lambda: stack.enter_context(context))
        yield
        barrier("held by the leader")


def barrier(name: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[int], bool]]:
    """Asks, before each step, whether SIGTERM or SIGINT wants the run to stop there.

    Several processes agree on the step: JAX's coordinator picks one that none of them has begun,
    whichever of them got the signal.

    Yields:
      `step -> bool`. All processes call it with every step.
    """
    requested = False

    def request(number: int, frame: Any) -> None:
        nonlocal requested
        requested = True
        # SLURM sends SIGTERM twice in a row, which must not end the save. A second Ctrl-C may.
        if number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])

    def pass_on(number: int, frame: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    several = jax.process_count() > 1
    # JAX's own handler, which is not Python's, listens for SIGTERM where there are several.
    handlers = (
        {signal.SIGINT: pass_on} if several else {signal.SIGTERM: request, signal.SIGINT: request}
    )
    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # Signals are the main thread's alone.
        for number, handler in handlers.items():
            before[number] = signal.signal(number, handler)
    try:
        yield multihost_utils.reached_preemption_sync_point if several else lambda step: requested
    finally:
        for number, old in before.items():
            signal.signal(number, old)

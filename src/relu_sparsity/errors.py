"""The ways in which a command ends that are nobody's bug."""

import re

# What the command line exits with: for these errors, and where it makes sense to try again.
USER_ERROR_STATUS = 1
TRY_AGAIN_STATUS = 75
# What a job that was asked to stop, and has saved, exits with and says.
STOPPED_STATUS = 143
GOES_ON = "the same command goes on"
# What clients of buckets say when they cannot read, some of them with exceptions of their own.
_UNREACHABLE = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED|ABORTED|"
    r"HttpError|Client\w*Error|Timeout|timed out|[Cc]onnection"
)


class UserError(Exception):
    """Bad input: the message names the file or key, the value and what is allowed.

    The command line prints the message without a traceback and exits with `USER_ERROR_STATUS`.

    Attributes:
      is_everyones: Whether all processes of a run have the same error, so that none has to tell the
        others.
    """

    def __init__(self, *message: object, is_everyones: bool = False) -> None:
        super().__init__(*message)
        self.is_everyones = is_everyones


class TryAgain(UserError):
    """Something is not to be reached now. The status is `TRY_AGAIN_STATUS`."""


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is saved and the next call goes on."""


def is_unreachable(error: Exception) -> bool:
    """Whether a read failed for a reason that says nothing about what is there."""
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return False
    return isinstance(error, OSError) or bool(
        _UNREACHABLE.search(f"{type(error).__name__}: {error}")
    )

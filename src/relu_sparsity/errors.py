"""The errors that a user can mend."""


class UserError(Exception):
    """Bad input: the message names the file or key, the value and what is allowed.

    The command line prints the message without a traceback and exits with status 1.
    """

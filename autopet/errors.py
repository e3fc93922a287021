"""The one exception that users see as a single line."""


class AutopetError(Exception):
    """Something the user can mend: the message says what was expected, what was found and what to do.

    The command line prints the message on one line and exits with status 1; anything else is a bug and keeps
    its traceback.
    """


def one_line(error: BaseException) -> str:
    """The message of an error on one line (container platforms show participants only the last line of stderr)."""
    text = " ".join(str(error).split())
    return text or type(error).__name__

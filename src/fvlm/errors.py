"""Exceptions that end a command: user errors and stop signals."""

# What a library may raise while it reads a damaged or hostile file, besides its own errors. Catch it only around the
# call that reads the file, never around code of this package.
BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


def first_line(error: BaseException) -> str:
    """Return the first line of an error message, or the error's type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UserError(Exception):
    """An error that the user can correct: what was found, what was expected and what to do, in one sentence.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class Stopped(BaseException):
    """A signal stopped a training; the same command resumes it.

    It can be raised anywhere, like KeyboardInterrupt. It is no Exception, so no library code can catch it as an error
    of its own.

    status   the exit status: 75 for "start me again", 130 after Ctrl-C
    where    how far the training came
    """

    def __init__(self, status: int, where: str):
        super().__init__(where)
        self.status = status

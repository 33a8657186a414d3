"""What ends a command early: a mistake that a user can mend, or a signal."""

# What libraries raise of a file whose content was made up to break them, beside errors of their own. Only around a call
# that reads such a file, never around code of this package.
BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


def first_line(error: BaseException) -> str:
    """What an error says, as far as a sentence can hold it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class UserError(Exception):
    """What was found, what was expected and what to do, in one sentence.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class Stopped(BaseException):
    """A signal asked a training to stop, and it did; the same command goes on from there.

    Like KeyboardInterrupt it may come anywhere, and is no error that somebody else's code, or ours around it, may take
    for its own.

    status   the exit status: 75 for "start me again", 130 after Ctrl-C
    where    how far it came
    """

    def __init__(self, status: int, where: str):
        super().__init__(where)
        self.status = status

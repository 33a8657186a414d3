"""What ends a command early: a mistake that a user can mend, or a signal."""


class UserError(Exception):
    """What was found, what was expected and what to do, in one sentence.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class Stopped(Exception):
    """A signal asked a training to stop, and it did; the same command goes on from there.

    status   the exit status: 75 for "start me again", 130 after Ctrl-C
    where    how far it came
    """

    def __init__(self, status: int, where: str):
        super().__init__(where)
        self.status = status

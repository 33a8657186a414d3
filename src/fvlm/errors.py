"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """What was found, what was expected and what to do, in one sentence.

    The command line prints the sentence without a traceback and exits with status 2.
    """

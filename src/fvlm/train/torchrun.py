"""torchrun with the exit status of the training: `python -m fvlm.train.torchrun --nproc-per-node=2 -m fvlm ...`.

Without this module torchrun exits with 1 for every failure, kills the ranks 30 s after a signal, dies of a signal
before it has started them, and leaves them running after a third signal.
"""

import logging
import signal
import sys
from contextlib import suppress

import psutil

from fvlm.train.signals import PASSED_ON, REQUEUE

SECONDS_TO_SAVE = 600  # a checkpoint of the largest model on slow storage
SIGNALS = "--signals-to-handle=SIGQUIT"  # for torchrun; this module handles the others
RETRY_S = 0.2  # pause before a signal is passed on again while torchrun has not started the ranks


def main(argv: list[str]) -> int:
    """Run torchrun and return the exit status of the rank that failed first, 0 if none did.

    A signal is passed on to the ranks, which save and stop; the status is then REQUEUE, whatever theirs is. The handler
    raises no exception, since an exception during an import can be lost.
    """
    received = []

    def pass_on(number: int, _frame: object) -> None:
        received.append(number)
        ranks = psutil.Process().children()
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.terminate()
        if not ranks:
            signal.setitimer(signal.ITIMER_REAL, RETRY_S)

    for number in (*PASSED_ON, signal.SIGALRM):
        signal.signal(number, pass_on)
    try:
        status = _run(argv, received)
    except KeyboardInterrupt:
        return 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # an alarm after the last handler would kill the process
    return REQUEUE if received else status


def _run(argv: list[str], received: list[int]) -> int:
    """Import torchrun, which takes seconds, and run it unless a signal has arrived meanwhile."""
    logging.disable()  # the ranks report their errors themselves
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if received:
        return REQUEUE
    try:
        run.main([SIGNALS, f"--shutdown-timeout={SECONDS_TO_SAVE}", *argv])
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status >= 0 else 128 - status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

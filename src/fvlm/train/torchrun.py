"""torchrun, whose exit status is that of the training: `python -m fvlm.train.torchrun --nproc-per-node=2 -m fvlm ...`.

As it is, torchrun exits with 1 whatever its processes say, and kills them 30 s after a signal; one that comes before it
has started them ends it, and the third one leaves them behind.
"""

import logging
import signal
import sys

from fvlm.train.signals import PASSED_ON, REQUEUE

SECONDS_TO_SAVE = 600  # a checkpoint of the largest model on slow storage
SIGNALS = "--signals-to-handle=SIGQUIT"  # torchrun's own; the others are handled here


def main(argv: list[str]) -> int:
    """Run torchrun; returns the status of the process that failed first, 0 if none did."""
    for number in PASSED_ON:
        signal.signal(number, _stop)
    logging.disable()  # its processes say what happened
    from torch.distributed import run  # takes seconds, in which a signal is heard
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main([SIGNALS, f"--shutdown-timeout={SECONDS_TO_SAVE}", *argv])
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status >= 0 else 128 - status
    except KeyboardInterrupt:
        return 130
    return 0


def _stop(_number: int, _frame: object) -> None:
    """On its way out torchrun sends SIGTERM to its processes and waits until they have saved themselves.

    Another signal must not end that: launchers and schedulers send several.
    """
    for number in PASSED_ON:
        signal.signal(number, lambda *_: None)
    raise SystemExit(REQUEUE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

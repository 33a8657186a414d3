"""torchrun, whose exit status is that of the training: `python -m fvlm.train.torchrun --nproc-per-node=2 -m fvlm ...`.

As it is, torchrun exits with 1 whatever its processes say, and kills them 30 s after a signal.
"""

import logging
import sys
from signal import SIGTERM, SIGUSR1

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from fvlm.train.signals import REQUEUE

SECONDS_TO_SAVE = 600  # a checkpoint of the largest model on slow storage
SIGNALS = f"--signals-to-handle={SIGTERM.name},{SIGUSR1.name}"


def main(argv: list[str]) -> int:
    """Run torchrun; returns the status of the process that failed first, 0 if none did."""
    logging.disable()  # its processes say what happened
    try:
        run.main([SIGNALS, f"--shutdown-timeout={SECONDS_TO_SAVE}", *argv])
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        return status if status >= 0 else 128 - status
    except SignalException:  # passed on to the processes, which saved themselves
        return REQUEUE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

# This snakemake among others: what a killed one left behind, and how signals reach it.

import fcntl
import threading

from snakemake.scheduling.job_scheduler import JobScheduler


def drop_stale_locks():
    """Let the next call go on after a kill: Snakemake's lock files outlive their process, this one does not.

    returns the open file that holds our own lock, to be kept until this process ends, or None if another has it
    """
    folder = Path(".snakemake")
    folder.mkdir(exist_ok=True)
    file = open(folder / "alive", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None  # another Snakemake is at work here, and its locks are meant
    for lock in folder.glob("locks/*.lock"):
        lock.unlink()
    return file


def dry_run_asked():
    """Snakemake does not yet know, while it parses, whether it will run anything."""
    short = [word for word in sys.argv[1:] if re.fullmatch("-[a-zA-Z]+", word)]
    return (
        "--dry-run" in sys.argv
        or "--dryrun" in sys.argv
        or any("n" in word for word in short)
    )


def answer_signals_beside():
    """Let another thread do what Snakemake 9 does on SIGTERM: it takes a lock that the main thread, which the signal
    interrupts, may hold as it finishes a job, and would then wait for itself for ever.
    """
    graceful = JobScheduler.exit_gracefully

    def beside(self, *args):
        threading.Thread(target=graceful, args=(self, *args), daemon=True).start()

    JobScheduler.exit_gracefully = beside


if workflow.is_main_process and dry_run_asked():
    announce(sys.stderr)
elif workflow.is_main_process:
    ALIVE = drop_stale_locks()
    answer_signals_beside()

"""A Slurm on this machine: munged, slurmctld and a slurmd for each of two nodes, as root and without systemd.

The nodes are both this machine; the second is in a partition of its own, for jobs of several nodes.

Packages are Debian's. The configuration is in /etc/slurm, the only place where job steps look for it, and everything
else in a folder of its own. At the end all that was added is removed, packages included.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ETC = Path("/etc/slurm")
MARK = "# Made by the tests of fVLM, which remove it when they end."
CPUS, MEMORY_MB, SECOND = 4, 20_000, "second"  # of each node, whatever the machine has

SETTINGS = """{mark}
ClusterName=fvlm
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmdPort={next_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
MinJobAge=7200
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
AccountingStorageType=accounting_storage/none
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:small:1 State=UNKNOWN
NodeName={second} NodeHostname={host} NodeAddr=127.0.0.1 Port={last_port} CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=small Nodes={host} Default=YES State=UP
PartitionName=gpu Nodes={host} State=UP
PartitionName=two Nodes={host},{second} State=UP
"""


class Unavailable(Exception):
    """The reason why this machine can run no Slurm."""


def run_command(*command: str, **options) -> str:
    """Run a command to its end; return its output, or raise RuntimeError with its error message."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout


def installed() -> set[str]:
    lines = run_command("dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n").splitlines()
    return {line.split()[0] for line in lines if line.endswith(" installed")}


class Cluster:
    def __init__(self, folder: Path):
        self.folder, self.host = folder, socket.gethostname().split(".")[0]
        self.daemons: dict[str, subprocess.Popen] = {}
        self.added: list[str] = []
        self.made_etc = False

    def __enter__(self) -> "Cluster":
        self._require()
        try:
            self._install()
            self._configure()
            self._munged()
            self.start("slurmctld")
            for node in (self.host, SECOND):
                self._start(f"slurmd.{node}", "slurmd", "-D", "-N", node)
            self.wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the daemons and remove all that was added, also after an error."""
        if "slurmctld" in self.daemons:
            subprocess.run(["scancel", "--me"], capture_output=True, timeout=30)
        for name in reversed(list(self.daemons)):
            self.stop(name)
        for name in ("slurm.conf", "gres.conf"):
            if (ETC / name).exists() and MARK in (ETC / name).read_text():
                (ETC / name).unlink()
        if self.added:
            run_command("apt-get", "purge", "--yes", "--quiet", *self.added, env=_apt_environment())
        if self.made_etc and ETC.exists() and not any(ETC.iterdir()):
            ETC.rmdir()

    def _require(self) -> None:
        if os.geteuid():
            raise Unavailable("a Slurm of its own needs root")
        if not shutil.which("apt-get"):
            raise Unavailable("Slurm's packages come from Debian, and there is no apt-get here")
        for name in ("slurm.conf", "gres.conf"):
            if (ETC / name).exists() and MARK not in (ETC / name).read_text():
                raise Unavailable(f"{ETC / name} belongs to another Slurm, which is left alone")
        for name in ("slurmctld", "slurmd"):
            if subprocess.run(["pgrep", "-x", name], capture_output=True).returncode == 0:
                raise Unavailable(f"a {name} is already running, which is left alone")

    def _install(self) -> None:
        before = installed()
        self.made_etc = not ETC.exists()
        if not set(PACKAGES) <= before:
            install = ("apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *PACKAGES)
            try:
                run_command("apt-get", "update", "--quiet", env=_apt_environment())
                run_command(*install, env=_apt_environment())
            except RuntimeError as error:
                raise Unavailable(f"Slurm's packages cannot be had: {str(error).splitlines()[-1]}") from error
            finally:
                self.added = sorted(installed() - before)

    def _configure(self) -> None:
        for name in ("state", "munge"):
            (self.folder / name).mkdir(parents=True)
        ETC.mkdir(exist_ok=True)
        port = _free_ports()
        text = SETTINGS.format(
            mark=MARK, host=self.host, second=SECOND, folder=self.folder, cpus=CPUS, memory=MEMORY_MB,
            port=port, next_port=port + 1, last_port=port + 2,
        )  # fmt: skip
        (ETC / "slurm.conf").write_text(text)
        (ETC / "gres.conf").write_text(f"{MARK}\nNodeName={self.host} Name=gpu Type=small File=/dev/null\n")

    def _munged(self) -> None:
        key = self.folder / "munge/key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(64))
        paths = {"key-file": "munge/key", "socket": "munge.socket", "pid-file": "munge/pid", "seed-file": "munge/seed",
                 "log-file": "munge/log"}  # fmt: skip
        options = [f"--{name}={self.folder / path}" for name, path in paths.items()]
        self._start("munged", "munged", "--foreground", "--force", *options)
        _wait(lambda: (self.folder / "munge.socket").exists(), 20, "munged made no socket")

    def start(self, name: str) -> None:
        """Start `slurmctld` with the state that it had when it was stopped."""
        self._start(name, name, "-D")

    def _start(self, name: str, *command: str) -> None:
        output = open(self.folder / f"{name}.out", "a")  # noqa: SIM115 - the daemon's own
        self.daemons[name] = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        output.close()

    def stop(self, name: str, sign: int = signal.SIGTERM) -> None:
        daemon = self.daemons.pop(name, None)
        if daemon is None:
            return
        daemon.send_signal(sign)
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def wait_until_idle(self) -> None:
        def idle() -> bool:
            done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True)
            return done.returncode == 0 and set(done.stdout.split()) == {"idle"}

        try:
            _wait(idle, 60, "the node did not become idle")
        except TimeoutError as error:
            tail = "\n".join("\n".join(log.read_text().splitlines()[-5:]) for log in self.folder.glob("*.log"))
            raise RuntimeError(f"{error}: {tail}") from error

    # --- the queue ---

    def jobs(self, folder: Path | None = None, states: str = "all") -> list[dict]:
        """Jobs that Slurm remembers, the oldest first; those of one working directory if `folder` is given."""
        fields = {"id": "%A", "state": "%T", "name": "%j", "folder": "%Z", "comment": "%k", "restarts": "%X"}
        form = "|".join(fields.values())
        output = run_command("squeue", "--noheader", f"--states={states}", f"--format={form}")
        rows = [dict(zip(fields, line.split("|"), strict=True)) for line in output.splitlines()]
        rows = [row for row in rows if folder is None or row["folder"] == str(folder)]
        return sorted(rows, key=lambda row: int(row["id"]))

    def show(self, job: str) -> dict[str, str]:
        """`scontrol show job` as a dictionary."""
        words = run_command("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)


def _apt_environment() -> dict[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}


def _free_ports() -> int:
    """The first of three neighbouring free ports."""
    for port in range(26_817, 27_817, 3):
        try:
            for number in range(port, port + 3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", number))
        except OSError:
            continue
        return port
    raise Unavailable("no free port for slurmctld")


def _wait(condition, seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(otherwise)
        time.sleep(0.1)

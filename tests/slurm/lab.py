"""A real Slurm on this machine: Debian's, as root, loopback only, its GPUs device files without a driver.

Many nodes on one host: one slurmd each, on a port of its own, which Debian's build allows (``-N``). What
makes it work:

- a munged of its own, with its own key and socket; SlurmUser and SlurmdUser root;
- ``NoInAddrAny``: nothing listens beyond loopback;
- ``config_overrides``: a node has the CPUs that its line says, whatever this machine has;
- cgroup v1 with ``ConstrainDevices``: a device file that a job may open answers ENXIO (no driver), another
  EPERM. So isolation is real, and can be seen, without a card.

`Lab.down` ends only what the lab started, by pid, and leaves no process, no cgroup and no file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CARDS = 8
CGROUPS = Path("/sys/fs/cgroup")
DEADLINE_SECONDS = 120.0
_NEEDED = (
    *("munged", "slurmctld", "slurmd", "slurmrestd", "sbatch", "squeue"),
    *("mariadbd", "slurmdbd", "sacctmgr"),
)
_SLURM_CONF = """\
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={run}/munge.sock
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid
SlurmctldLogFile={log}/slurmctld.log
SlurmdLogFile={log}/slurmd.%n.log
StateSaveLocation={home}/ctld
SlurmdSpoolDir={home}/spool.%n
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
MinJobAge=300
KillWait=1
SlurmctldTimeout=60
SlurmdTimeout=8
MessageTimeout=4
TCPTimeout=2
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AccountingStorageType=accounting_storage/none
PrivateData=jobs
PartitionName=base Nodes={nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=spot Nodes={nodes} MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
"""
_NODE = (
    "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=16 Sockets=1 "
    "CoresPerSocket=16 ThreadsPerCore=1 RealMemory=2000 Gres=gpu:h100:8 State=UNKNOWN\n"
)
_CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainDevices=yes
"""


class LabError(Exception):
    """The lab cannot be: the text says what this machine lacks or which command failed."""


@dataclass(slots=True)
class Lab:
    """A running Slurm. Attributes: home: its directory; nodes: their names."""

    home: Path
    nodes: tuple[str, ...]
    prefix: str
    environ: dict[str, str] = field(default_factory=dict)
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def up(cls, nodes: int) -> Lab:
        """Start a Slurm with so many nodes of 8 cards each; returns when all are idle."""
        check_machine()
        # Not below pytest's own directory: munge wants every directory above its socket open to all.
        home = Path(tempfile.mkdtemp(prefix="flopwatch-slurm-"))
        prefix = f"fw{os.getpid()}n"
        names = tuple(f"{prefix}{i:03d}" for i in range(1, nodes + 1))
        lab = cls(home=home, nodes=names, prefix=prefix)
        try:
            lab._write()
            lab._start()
        except BaseException:
            lab.down()
            raise
        return lab

    @property
    def node_list(self) -> str:
        """The nodes as Slurm writes them."""
        return f"{self.prefix}[001-{len(self.nodes):03d}]"

    def slots(self) -> dict[str, list[str]]:
        """Node → the PCI addresses that its cards would have."""
        return {n: [f"0000:{i + 1:02x}:00.0" for i in range(CARDS)] for n in self.nodes}

    def run(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self.environ, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise LabError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def submit(self, *options: str, script: str = "exec sleep 1000") -> str:
        """Submit a script; return the job's number."""
        printed = self.run("sbatch", "-o", "/dev/null", "--parsable", *options, "--wrap", script)
        return printed.strip().partition(";")[0]

    def until(self, what: str, reached: Callable[[], bool]) -> None:
        """Wait until something is so; fail loudly if it never is."""
        ends = time.monotonic() + DEADLINE_SECONDS
        while not reached():
            if time.monotonic() > ends:
                raise LabError(
                    f"waited {DEADLINE_SECONDS:.0f} s in vain until {what}\n{self.state()}"
                )
            time.sleep(0.1)

    def until_state(self, job: str, state: str) -> None:
        """Wait until squeue shows a job in a state, such as R, PD, S."""
        self.until(f"job {job} is {state}", lambda: self.job_state(job) == state)

    def job_state(self, job: str) -> str:
        """The job's state as squeue writes it; empty when it is gone."""
        return self.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%t").strip()

    def state(self) -> str:
        """What squeue and sinfo show, for failures."""
        return self.run("squeue", "-l") + self.run("sinfo", "-N", "-l")

    def clear(self) -> None:
        """End all jobs, bring every node back, and wait until nothing is left."""
        self.run("scancel", "-u", "root")
        self.until("no job is left", lambda: not self.run("squeue", "-h").strip())
        drained = self.run("sinfo", "-h", "-N", "-p", "base", "-t", "drain", "-o", "%N").split()
        for node in drained:
            self.run("scontrol", "update", f"nodename={node}", "state=resume")

    def cgroup(self, node: str, job: str) -> Path:
        """The device cgroup of a job on a node."""
        return CGROUPS / "devices" / f"slurm_{node}" / "uid_0" / f"job_{job}"

    def cards_open_to(self, node: str, job: str) -> set[int]:
        """The cards that a process in the job's device cgroup may open: asked of the kernel."""
        self.until(f"job {job} has begun on {node}", self.cgroup(node, job).is_dir)
        script = f'echo $$ > "{self.cgroup(node, job)}/cgroup.procs" || exit 9\n'
        for i in range(CARDS):
            script += f': < "{self.home}/dev/gpu{i}"\n'
        done = subprocess.run(
            ("bash", "-c", script),
            capture_output=True, text=True, timeout=30, env={"LC_ALL": "C", "PATH": os.environ["PATH"]},
        )  # fmt: skip
        if done.returncode == 9:
            raise LabError(f"cannot enter the cgroup of job {job} on {node}: {done.stderr}")
        answers = re.findall(r"gpu(\d+): (.*)", done.stderr)
        refused = {int(i) for i, said in answers if said == "Operation not permitted"}
        allowed = {int(i) for i, said in answers if said == "No such device or address"}
        if len(refused) + len(allowed) != CARDS:
            raise LabError(f"unexpected answers of the device files: {done.stderr}")
        return allowed

    def pids_of(self, node: str, job: str) -> list[int]:
        """The processes in the job's cgroup on a node, once its script runs."""
        root = CGROUPS / "freezer" / f"slurm_{node}" / "uid_0" / f"job_{job}"

        def pids() -> list[int]:
            texts = [procs.read_text() for procs in root.glob("**/cgroup.procs")]
            return sorted(int(pid) for text in texts for pid in text.split())

        self.until(f"job {job} runs on {node}", lambda: "sleep" in map(_command, pids()))
        return pids()

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's daemon; what its jobs started goes on."""
        self.daemons[node].kill()
        self.daemons[node].wait()

    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon."""
        self.daemons[node] = self.daemon("slurmd", "-D", "-N", node)

    def stop_controller(self) -> None:
        """Stop the controller, which saves what it knows: killed, it would take up an older state."""
        self.daemons["slurmctld"].terminate()
        self.daemons["slurmctld"].wait(DEADLINE_SECONDS)

    def start_controller(self) -> None:
        """Start the controller, with the state it saved if there is one."""
        self.daemons["slurmctld"] = self.daemon("slurmctld", "-D")
        self.until("the controller answers", lambda: "UP" in self._ping())

    @contextlib.contextmanager
    def rest(self) -> Iterator[str]:
        """Run slurmrestd on a unix socket, as nobody, as it refuses to be root; yields its URL."""
        home = self.home / "rest"
        home.mkdir(exist_ok=True)
        shutil.chown(home, "nobody", "nogroup")
        place = home / "rest.sock"
        process = self.daemon(
            *("slurmrestd", "-s", "v0.0.38", "-a", "rest_auth/local", f"unix:{place}"),
            user="nobody",
        )
        try:
            self.until("slurmrestd listens", place.is_socket)
            yield f"unix://{place}"
        finally:
            process.kill()
            process.wait()
            place.unlink(missing_ok=True)

    def down(self) -> None:
        """End what was started, and remove every trace."""
        for process in self.daemons.values():
            process.kill()
        for process in self.daemons.values():
            process.wait()
        for cgroup in CGROUPS.glob(f"*/slurm_{self.prefix}*"):
            _end_cgroup(cgroup)
        shutil.rmtree(self.home, ignore_errors=True)

    def _write(self) -> None:
        for name in ("etc", "log", "run", "ctld", "dev"):
            (self.home / name).mkdir(parents=True)
        self.home.chmod(0o755)
        for i in range(CARDS):
            os.mknod(self.home / "dev" / f"gpu{i}", 0o666 | stat.S_IFCHR, os.makedev(195, i))
        key = self.home / "etc" / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports = free_ports(len(self.nodes) + 1)
        places = {name: str(self.home / name) for name in ("run", "log")}
        conf = _SLURM_CONF.format(home=self.home, port=ports[0], nodes=self.node_list, **places)
        lines = [_NODE.format(name=n, port=p) for n, p in zip(self.nodes, ports[1:], strict=True)]
        head, _, tail = conf.partition("PartitionName=")
        etc = self.home / "etc"
        (etc / "slurm.conf").write_text(head + "".join(lines) + "PartitionName=" + tail)
        (etc / "gres.conf").write_text(
            f"NodeName={self.node_list} Name=gpu Type=h100 File={self.home}/dev/gpu[0-7]\n"
        )
        (etc / "cgroup.conf").write_text(_CGROUP_CONF)
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": "/root",
            "LC_ALL": "C",
            "SLURM_CONF": str(etc / "slurm.conf"),
        }

    def _start(self) -> None:
        run, log = self.home / "run", self.home / "log"
        self.daemons["munged"] = self.daemon(
            *("munged", "-F", "--num-threads=2", f"--socket={run}/munge.sock"),
            *(f"--key-file={self.home}/etc/munge.key", f"--pid-file={run}/munged.pid"),
            *(f"--log-file={log}/munged.log", f"--seed-file={run}/munged.seed"),
        )
        ends = time.monotonic() + DEADLINE_SECONDS
        while not (run / "munge.sock").is_socket():
            if time.monotonic() > ends or self.daemons["munged"].poll() is not None:
                raise LabError(f"munged does not start: {(log / 'munged.log').read_text()[-300:]}")
            time.sleep(0.05)
        self.start_controller()
        for node in self.nodes:
            self.start_slurmd(node)
        self.until("all nodes are idle", lambda: self._idle() == set(self.nodes))

    def daemon(self, *command: str, user: str | None = None) -> subprocess.Popen[bytes]:
        """Start a program that knows this Slurm."""
        return subprocess.Popen(
            command, env=self.environ, start_new_session=True,
            user=user, group=user and "nogroup", extra_groups=() if user else None,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def _ping(self) -> str:
        with contextlib.suppress(LabError):
            return self.run("scontrol", "ping")
        return ""

    def _idle(self) -> set[str]:
        lines = self.run("sinfo", "-h", "-N", "-o", "%N %t").splitlines()
        return {
            name for name, _, state in (line.partition(" ") for line in lines) if state == "idle"
        }


def check_machine() -> None:
    """Raise LabError, in words, where this machine cannot run a Slurm."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}; run: make debian")
    if os.geteuid() != 0:
        raise LabError("the real Slurm needs root: device files and cgroups")
    for controller in ("devices", "freezer"):
        if not os.access(CGROUPS / controller / "cgroup.procs", os.W_OK):
            raise LabError(f"no cgroup v1 controller {controller} at {CGROUPS}/{controller}")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = []
    try:
        for _ in range(count):
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            sockets.append(listener)
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()


def _command(pid: int) -> str:
    """The name of what a process runs; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _end_cgroup(cgroup: Path) -> None:
    """Kill what is in a cgroup and below, frozen or not, and remove it."""
    below = sorted((p.parent for p in cgroup.glob("**/cgroup.procs")), key=lambda p: -len(p.parts))
    ends = time.monotonic() + 10
    for place in below:
        state = place / "freezer.state"
        if state.exists():
            state.write_text("THAWED")
    while any((place / "cgroup.procs").read_text() for place in below if place.exists()):
        for place in below:
            for pid in (place / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        if time.monotonic() > ends:
            break
        time.sleep(0.05)
    for place in below:
        with contextlib.suppress(OSError):
            place.rmdir()

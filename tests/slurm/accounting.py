"""The accounting of a lab: a real slurmdbd on a real MariaDB, in the lab's directory, on loopback."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from slurm.lab import Lab, LabError, free_ports

_TABLES = Path("/usr/share/mysql/mysql_system_tables.sql")
_NONE = "AccountingStorageType=accounting_storage/none\n"
_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={home}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={home}/log/slurmdbd.log
PidFile={home}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=root
StorageLoc=lab
CommunicationParameters=NoInAddrAny
"""
_SLURM_CONF = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={port}
AccountingStoragePass={home}/run/munge.sock
"""


@contextlib.contextmanager
def accounting(lab: Lab, conf: str = "") -> Iterator[None]:
    """Let a lab's controller account for a while; `conf` are more lines of slurm.conf meanwhile."""
    slurm_conf = lab.home / "etc" / "slurm.conf"
    before = slurm_conf.read_text()
    assert _NONE in before
    port, database_port = free_ports(2)
    started = ("mariadbd", "slurmdbd")
    try:
        _start(lab, port, database_port)
        lab.stop_controller()
        slurm_conf.write_text(
            before.replace(_NONE, _SLURM_CONF.format(home=lab.home, port=port) + conf)
        )
        lab.until("the accounting knows the cluster", lambda: _add_cluster(lab))
        lab.start_controller()
        yield
    finally:
        lab.stop_controller()
        slurm_conf.write_text(before)
        lab.start_controller()
        for name in reversed(started):
            if name in lab.daemons:
                lab.daemons[name].kill()
                lab.daemons.pop(name).wait()


def _start(lab: Lab, port: int, database_port: int) -> None:
    home, data = lab.home, lab.home / "database"
    common = ("mariadbd", "--no-defaults", "--user=root", f"--datadir={data}")
    (data / "mysql").mkdir(parents=True)
    subprocess.run(
        (*common, "--bootstrap"),
        input=f"use mysql;\n{_TABLES.read_text()}",
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    socket = home / "run" / "sql.sock"
    lab.daemons["mariadbd"] = lab.daemon(
        *(*common, "--skip-grant-tables", "--bind-address=127.0.0.1", f"--port={database_port}"),
        *(f"--socket={socket}", f"--pid-file={home}/run/sql.pid"),
        f"--log-error={home}/log/sql.log",
    )
    lab.until("the database listens", socket.is_socket)
    conf = home / "etc" / "slurmdbd.conf"
    conf.write_text(_SLURMDBD_CONF.format(home=home, port=port, database_port=database_port))
    conf.chmod(0o600)
    lab.daemons["slurmdbd"] = lab.daemon("slurmdbd", "-D")


def _add_cluster(lab: Lab) -> bool:
    with contextlib.suppress(LabError):
        lab.run("sacctmgr", "-i", "add", "cluster", "lab")
        return True
    return False

"""A real PostgreSQL server on loopback, with databases of their own for whoever asks."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from processes import awaited

# Durability is PostgreSQL's own to test: here it only costs time.
SETTINGS = ("fsync=off", "unix_socket_directories=", "listen_addresses=127.0.0.1")


class Postgres:
    """A server. Attributes: port: on loopback; pid: of its first process."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self._numbers = itertools.count(1)

    def database(self) -> str:
        """Return the DSN of a new and empty database."""
        name = f"control{next(self._numbers)}"
        with psycopg.connect(self._where("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return f"postgresql+psycopg://flopwatch@127.0.0.1:{self.port}/{name}"

    def rows(self, dsn: str, sql: str) -> list[tuple[Any, ...]]:
        """Ask a database past everything that is tested."""
        with psycopg.connect(self._where(dsn.rpartition("/")[2])) as connection:
            return connection.execute(sql.encode()).fetchall()

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            psycopg.connect(self._where("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _where(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} user=flopwatch dbname={database}"


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server for the length of a block; as root it runs as Debian's user for it."""
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name))
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    # Not below pytest's own folder, which is closed to other users.
    directory = Path(tempfile.mkdtemp(prefix="flopwatch-postgres-"))
    try:
        shutil.chown(directory, user)
        data, log = directory / "data", directory / "log"
        log.touch()
        initdb = (binaries / "initdb", "-D", data, "-U", "flopwatch", "-A", "trust", "-E", "UTF8")
        subprocess.run(
            (*initdb, "--locale=C.UTF-8", "--no-sync"),
            user=user,
            check=True,
            cwd=directory,
            capture_output=True,
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = [word for setting in SETTINGS for word in ("-c", setting)]
        with log.open("wb") as said:
            server = subprocess.Popen(
                (binaries / "postgres", "-D", data, "-p", str(port), *settings),
                user=user,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        try:
            started = Postgres(port, server.pid)

            def ready() -> bool:
                assert server.poll() is None, log.read_text(errors="replace")
                return started.answers()

            awaited(ready, "PostgreSQL takes connections")
            yield started
        finally:
            server.send_signal(signal.SIGINT)  # "fast": it ends its connections and then itself
            server.wait()
    finally:
        shutil.rmtree(directory)

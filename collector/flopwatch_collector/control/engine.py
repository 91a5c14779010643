"""Opening the control store: engine, SQLite settings, migrations.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit is on disk when it returns, and several
processes read while one writes. Writers take the write lock when they begin (``BEGIN IMMEDIATE``), so two
of them wait for each other instead of failing half-way.

PostgreSQL lets writers run side by side: what must not is put in line by a lock of its own
(`one_at_a_time`). A server that does not answer is given up after seconds, so that whoever holds a lease
learns in time that it cannot renew it.
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from flopwatch_proto.errors import UsageError

BUSY_TIMEOUT_MS: Final = 15_000
WAL_RETRY_MS: Final = 20
WRITE_OPTION: Final = "flopwatch_write"
MIGRATIONS: Final = "flopwatch_collector.control:migrations"
MIGRATION_LOCK: Final = 0x666C6F70
AUDIT_LOCK: Final = 0x666C6F71
POSTGRESQL: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8_000,
    "options": "-c statement_timeout=10s -c lock_timeout=8s"
    " -c idle_in_transaction_session_timeout=10s -c synchronous_commit=on",
}


def open_engine(dsn: str, *, migrate: bool) -> Engine:
    """An engine on a store that can be used, migrated to this version's tables.

    Args:
        dsn: ``sqlite:////var/lib/flopwatch/control.db`` or a PostgreSQL URL.
        migrate: False for readers: the tables are there or the store is refused.

    Raises:
        UsageError: the DSN is wrong, or the store cannot be read or written.
    """
    try:
        url = make_url(dsn)
        shared = url.get_backend_name() == "postgresql"
        engine = create_engine(
            url, pool_pre_ping=shared, connect_args=dict(POSTGRESQL) if shared else {}
        )
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as exc:
        raise UsageError(
            "control: the DSN is not usable; write sqlite:////path/control.db"
            f" or postgresql+psycopg://host/name ({exc})"
        ) from exc
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
        _check_directory(url.database)
    try:
        _check(engine, migrate=migrate)
    except (SQLAlchemyError, CommandError, OSError) as exc:
        engine.dispose()
        raise UsageError(
            f"control: {url.render_as_string(hide_password=True)} cannot be"
            f" {'written' if migrate else 'read'}: {_first_line(exc)}"
        ) from exc
    return engine


def one_at_a_time(connection: Connection, lock: int) -> None:
    """Wait until no other transaction has a lock, and keep it to the end of this one."""
    # SQLite's writers do not run side by side anyway.
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock})")


def _first_line(exc: Exception) -> str:
    return str(getattr(exc, "orig", None) or exc).splitlines()[0]


def _check_directory(database: str | None) -> None:
    if database and not database.startswith(":") and not Path(database).parent.is_dir():
        raise UsageError(f"control: the directory {Path(database).parent} does not exist; make it")


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _settings(connection: Any, _record: object) -> None:
        # The driver's own transactions begin late and end early: this module begins them.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        _write_ahead(cursor)
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITE_OPTION, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _write_ahead(cursor: Any) -> None:
    """Switch to WAL. SQLite does not wait for that lock itself when another process switches too."""
    for _ in range(BUSY_TIMEOUT_MS // WAL_RETRY_MS):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc):
                raise
        time.sleep(WAL_RETRY_MS / 1000)
    cursor.execute("PRAGMA journal_mode=WAL")


def _check(engine: Engine, *, migrate: bool) -> None:
    if not migrate:
        with engine.connect() as connection:
            connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        return
    config = Config()
    config.set_main_option("script_location", MIGRATIONS)
    # One transaction: a second collector that starts now waits, and finds the work done.
    with engine.execution_options(**{WRITE_OPTION: True}).begin() as connection:
        one_at_a_time(connection, MIGRATION_LOCK)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

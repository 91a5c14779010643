"""Opening the control store: engine, SQLite settings, migrations.

SQLite runs in WAL mode with ``synchronous=FULL``: a commit is on disk when it returns, and several
processes read while one writes. Writers take the write lock when they begin (``BEGIN IMMEDIATE``), so two
of them wait for each other instead of failing half-way.
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
        engine = create_engine(url, pool_pre_ping=not url.drivername.startswith("sqlite"))
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
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

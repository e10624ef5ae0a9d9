"""The storage of a search: an Optuna journal file, or a database."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import create_engine, event, inspect
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, SQLAlchemyError

from hpt_mlflow.errors import HptError, one_line, without_secrets

JOURNAL = "journal:"
# Seconds to wait for a server that does not answer, and for a file that other processes write to.
TIMEOUTS = {"postgresql": {"connect_timeout": 10}, "mysql": {"connect_timeout": 10}, "sqlite": {"timeout": 60}}
# How often to open a new database in which another process creates the same tables at the same time.
MOST_OPENINGS = 10
MLFLOW_TABLES = frozenset(["experiments", "registered_models"])
EXAMPLES = "journal:FILE, sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"


def open_storage(address: str) -> BaseStorage:
    """The storage at `journal:FILE`, or at the URL of a database.

    Raises:
        HptError: it cannot be opened: a missing folder, a server that does not answer, a driver that is not installed,
            a file that is not a journal.
    """
    if address.startswith(JOURNAL) and address != JOURNAL:
        return _open_journal(_journal_file(address))
    if "://" not in address:
        raise _unreadable(address)
    return _open_database(address)


def dashboard_command(address: str) -> str:
    """The command that opens a storage in optuna-dashboard."""
    if address.startswith(JOURNAL):
        return f"optuna-dashboard {shlex.quote(str(_journal_file(address)))}"
    return f"optuna-dashboard {shlex.quote(without_secrets(address))}"


@contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turn the errors of a storage into one line."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise HptError(f"{address}: {_reason(error)}", setting="storage") from error


def _journal_file(address: str) -> Path:
    """The absolute path of a journal: a relative one starts from the working directory."""
    return Path(address.removeprefix(JOURNAL)).expanduser().absolute()


def _open_journal(file: Path) -> BaseStorage:
    if not file.parent.is_dir():
        raise HptError(
            f"there is no folder {file.parent} for {file.name}", "create it, or name another file", setting="storage"
        )
    try:
        _check_beginning(file)
        # Optuna breaks a lock that a killed process has left behind after 30 seconds.
        return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))
    except OSError as error:
        raise HptError(f"{file}: {error.strerror or one_line(error)}", setting="storage") from error
    except Exception as error:
        raise HptError(
            f"{file} is not an Optuna journal ({one_line(error)})", "name another file", setting="storage"
        ) from error


def _check_beginning(file: Path) -> None:
    """Raise an exception if a file is not a journal: Optuna takes a single line for one that is being written."""
    if not file.exists():
        return
    with file.open("rb") as opened:
        line = opened.readline(1_000_000)
    unfinished = not line.endswith(b"\n")
    if not (line[:1] in (b"", b"{") if unfinished else "op_code" in json.loads(line)):
        raise ValueError("it does not begin like one")


def _open_database(address: str) -> BaseStorage:
    for _ in range(MOST_OPENINGS - 1):
        try:
            return _connect(address)
        except HptError as error:
            # The error of databases if two processes create a table, or insert the same row, at the same time.
            cause = error.__cause__
            if not isinstance(cause, IntegrityError) and "already exists" not in str(cause):
                raise
            time.sleep(0.1)
    return _connect(address)


def _connect(address: str) -> BaseStorage:
    try:
        url = _with_driver(make_url(address))
        kind = url.get_backend_name()
        arguments = {"connect_args": TIMEOUTS.get(kind, {}), "pool_pre_ping": True}
        _check_tables(url, arguments)
        storage = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=arguments)
    except (ArgumentError, ValueError):
        raise _unreadable(address) from None
    except HptError:
        raise
    except ImportError as error:
        raise HptError(
            f"{address} needs a driver ({one_line(error)})",
            'install it; for PostgreSQL: pip install "hpt_mlflow[postgresql]"',
            setting="storage",
        ) from error
    except Exception as error:
        raise HptError(f"{address}: {_reason(error)}", setting="storage") from error
    if kind == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise HptError(f"{address} is an in-memory database", "use sqlite:///FILE", setting="storage")
        _lock_first(storage.engine)
    return storage


def _check_tables(url: URL, arguments: dict[str, Any]) -> None:
    """Raise HptError if a database belongs to another program, before Optuna creates its tables in it."""
    engine = create_engine(url, **arguments)
    try:
        tables = set(inspect(engine).get_table_names())
    finally:
        engine.dispose()
    # MLflow and Optuna keep their version in a table of the same name.
    if tables and ("studies" not in tables or tables >= MLFLOW_TABLES):
        owner = "MLflow's own database" if tables >= MLFLOW_TABLES else "the database of another program"
        raise HptError(
            f"{url.render_as_string()} is {owner} (it has {', '.join(sorted(tables)[:3])}, ...)",
            "name another database, or use journal:FILE",
            setting="storage",
        )


def _lock_first(engine: Engine) -> None:
    """Let SQLite lock when a transaction begins: it locks no rows, and two processes would take the same trial."""

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    # Close the connections opened so far.
    engine.dispose()


def _with_driver(url: URL) -> URL:
    """Use psycopg for PostgreSQL if the URL names no driver."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _unreadable(address: str) -> HptError:
    return HptError(f"cannot read {address!r}", f"use {EXAMPLES}", setting="storage")


def _reason(error: BaseException) -> str:
    """The database's own message: the first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)

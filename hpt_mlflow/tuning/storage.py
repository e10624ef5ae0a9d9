"""Where a study is kept: Optuna's journal file, or a database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from hpt_mlflow.errors import HptError, one_line

JOURNAL = "journal:"
# Seconds after which a database that does not answer is called out of reach.
CONNECT_SECONDS = 10
EXAMPLES = "journal:FILE, sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"


def open_storage(address: str) -> BaseStorage:
    """The storage at `journal:FILE`, or at the URL of a database.

    Raises:
        HptError: it cannot be opened: a folder that is not there, a server that does not answer, a driver that is not
            installed, a file that is no journal.
    """
    if address.startswith(JOURNAL) and address != JOURNAL:
        return _open_journal(Path(address.removeprefix(JOURNAL)).expanduser())
    if "://" not in address:
        raise HptError(f"storage: cannot read {address!r}; write {EXAMPLES}")
    return _open_database(address)


def dashboard_command(address: str) -> str:
    """The command that opens a storage in optuna-dashboard."""
    shown = address.removeprefix(JOURNAL)
    return f"optuna-dashboard {shown if shown != address else hidden(address)}"


def hidden(address: str) -> str:
    """The address without its password."""
    try:
        return address if address.startswith(JOURNAL) else make_url(address).render_as_string(hide_password=True)
    except ArgumentError:
        return address


@contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turn what a storage raises into one line."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, OSError) as error:
        raise HptError(f"storage: {hidden(address)}: {_reason(error)}") from error


def _open_journal(file: Path) -> BaseStorage:
    if not file.parent.is_dir():
        raise HptError(f"storage: there is no folder {file.parent} for {file.name}; make it, or name another file")
    try:
        # A lock that a killed process has left is broken after 30 seconds (Optuna's grace period).
        return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))
    except OSError as error:
        raise HptError(f"storage: {file}: {error.strerror or one_line(error)}") from error
    except Exception as error:
        raise HptError(f"storage: {file} is no journal of Optuna ({one_line(error)}); name another file") from error


def _open_database(address: str) -> BaseStorage:
    try:
        url = _with_driver(make_url(address))
        timeout = {"connect_timeout": CONNECT_SECONDS} if url.get_backend_name() in ("postgresql", "mysql") else {}
        arguments = {"connect_args": timeout, "pool_pre_ping": True}
        return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=arguments)
    except ArgumentError:
        raise HptError(f"storage: cannot read {hidden(address)!r}; write {EXAMPLES}") from None
    except ImportError as error:
        raise HptError(
            f"storage: {hidden(address)} needs a driver: {one_line(error)}; for PostgreSQL, pip install psycopg[binary]"
        ) from error
    except Exception as error:
        raise HptError(f"storage: {hidden(address)}: {_reason(error)}") from error


def _with_driver(url: URL) -> URL:
    """psycopg for PostgreSQL, where no driver is named."""
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _reason(error: BaseException) -> str:
    """What the database itself says, which stands at the beginning of the error at the bottom."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)

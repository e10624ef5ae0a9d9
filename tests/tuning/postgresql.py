"""A PostgreSQL server of the tests' own, and a fixture of it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import MARK

# Debian keeps them here; elsewhere they are in PATH.
DEBIAN = Path("/usr/lib/postgresql")
READY = "ready to accept connections"
# Nothing of it has to outlive the tests. It is reached by its socket alone.
OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "listen_addresses=", "max_connections=100")
PR_SET_PDEATHSIG = 1


class Server:
    """A server that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._databases = 0

    def address(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """Make an empty database; gives its address."""
        self._databases += 1
        name = f"tests_{self._databases}"
        self.execute(self.address(), f"CREATE DATABASE {name}")
        return self.address(name)

    @staticmethod
    def execute(address: str, statement: str) -> None:
        import psycopg

        with psycopg.connect(address, autocommit=True, options="-c lock_timeout=20s") as connection:
            connection.execute(statement)


def find_programs() -> Path | None:
    """The folder of `initdb` and `postgres`, of the newest version; None where there is none."""
    folders = sorted(DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name.split(".")[0]), reverse=True)
    in_path = shutil.which("initdb")
    folders += [Path(in_path).parent] if in_path else []
    return next(
        (folder for folder in folders if all((folder / name).exists() for name in ("initdb", "postgres"))), None
    )


@contextmanager
def running_server(programs: Path, user: str | None) -> Iterator[Server]:
    """A server with an empty cluster in a folder of its own; it ends with the block, and with this process.

    Args:
        user: to run it as, since it refuses to be root; None for the one that this process has.
    """
    # Not under pytest's folder: the other user may not enter that, and the path of a socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="hpt-pg-"))
    cluster = folder / "cluster"
    as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
    try:
        if user:
            shutil.chown(folder, user, user)
        subprocess.run(
            [programs / "initdb", "-D", cluster, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
            **as_user,
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        options = [part for option in OPTIONS for part in ("-c", option)]
        with subprocess.Popen(
            [programs / "postgres", "-D", cluster, "-k", folder, *options],
            **as_user,
            cwd=folder,
            # All tests share it: it does not end with the first that asks for it.
            env={name: value for name, value in os.environ.items() if name != MARK},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_end_with_parent,  # noqa: PLW1509 (no thread of ours runs yet)
        ) as process:
            try:
                said = []
                for line in process.stderr:
                    said.append(line)
                    if READY in line:
                        break
                else:
                    raise RuntimeError(f"PostgreSQL did not start: {''.join(said)}")
                # What it says later must not fill the pipe.
                threading.Thread(target=deque, args=(process.stderr, 0), daemon=True).start()
                yield Server(folder)
            finally:
                # Without waiting for its clients.
                process.send_signal(signal.SIGQUIT)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A PostgreSQL server; the test is skipped where none can be started."""
    with server_or_skip() as server:
        yield server


@contextmanager
def server_or_skip() -> Iterator[Server]:
    """A PostgreSQL server of its own; the test is skipped where none can be started."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed")
    user = None
    if os.geteuid() == 0:
        import pwd

        user = "postgres"
        try:
            pwd.getpwnam(user)
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres")
    with running_server(programs, user) as server:
        yield server


def _end_with_parent() -> None:
    """Ask Linux to end this process once the one that started it is gone, killed ones included."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)

"""What a team runs: PostgreSQL, an S3-compatible store, and `mlflow server` on both."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import requests
from processes import wait_for

POSTGRES_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/usr/bin"))
BUCKET = "team"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """A cluster of its own; PostgreSQL does not run as root."""

    def __init__(self):
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="hpt-postgres-")), free_port()
        self.user = "postgres" if os.getuid() == 0 else None
        if self.user:
            shutil.chown(self.folder, self.user)
        self.control("initdb", "-o", "--auth=trust --username=mlflow")
        self.control("start", "-o", f"-p {self.port} -k {self.folder} -c fsync=off")
        self.uri = f"postgresql+psycopg://mlflow@127.0.0.1:{self.port}/postgres"

    def control(self, *words):
        command = [POSTGRES_BIN / "pg_ctl", "--wait", "-D", self.folder / "data", "-l", self.folder / "log", *words]
        subprocess.run(command, check=True, user=self.user, cwd=self.folder, stdout=subprocess.DEVNULL)

    def restart(self):
        self.control("restart", "-m", "immediate")


@contextmanager
def postgres():
    database = Postgres()
    try:
        yield database
    finally:
        with suppress(subprocess.CalledProcessError):
            database.control("stop", "-m", "immediate")
        shutil.rmtree(database.folder, ignore_errors=True)


@contextmanager
def object_store(folder):
    """An S3-compatible server with an empty bucket; gives its port."""
    port = free_port()
    with open(folder / "s3.txt", "w") as log:
        process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    try:
        wait_for(lambda: is_there(f"http://127.0.0.1:{port}"), process)
        requests.put(f"http://127.0.0.1:{port}/{BUCKET}", timeout=10).raise_for_status()
        yield port
    finally:
        process.kill()
        process.wait()


def is_there(uri):
    with suppress(requests.RequestException):
        return requests.get(uri, timeout=1).status_code < 500
    return False

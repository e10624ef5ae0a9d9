from __future__ import annotations

import os
import shlex
import socket
import sqlite3
import sys
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import _file as optuna_journal
from sqlalchemy.exc import OperationalError

from hpt_mlflow.errors import HptError
from hpt_mlflow.tuning.storage import TIMEOUTS, dashboard_command, open_storage, storage_errors


def refusal(address):
    with pytest.raises(HptError) as caught:
        open_storage(address)
    text = str(caught.value)
    assert text.startswith("storage: ")
    assert "\n" not in text
    return text


def is_kept(address):
    """Whether what is written into a storage is there when it is opened again."""
    study = optuna.create_study(storage=open_storage(address), study_name="cats")
    study.enqueue_trial({"crop": True}, user_attrs={"place": 3})
    (trial,) = optuna.load_study(storage=open_storage(address), study_name="cats").trials
    return trial.user_attrs == {"place": 3} and trial.system_attrs["fixed_params"] == {"crop": True}


@pytest.mark.parametrize("name", ["hpt.journal", "with space.journal", "sqlite"])
def test_a_journal_keeps_what_is_written(tmp_path, name):
    assert is_kept(f"journal:{tmp_path}/{name}")


def test_a_journal_at_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_kept("journal:hpt.journal")
    assert (tmp_path / "hpt.journal").exists()


def test_a_journal_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert is_kept("journal:~/hpt.journal")
    assert (tmp_path / "hpt.journal").exists()


def test_a_journal_in_a_missing_folder_is_refused(tmp_path):
    text = refusal(f"journal:{tmp_path}/no/hpt.journal")
    assert f"{tmp_path}/no" in text
    assert "create it, or name another file" in text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_journal(tmp_path):
    assert f"{tmp_path}: Is a directory" in refusal(f"journal:{tmp_path}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_journal_that_may_not_be_read_is_refused(tmp_path):
    file = tmp_path / "hpt.journal"
    file.touch(mode=0)
    assert "Permission denied" in refusal(f"journal:{file}")


@pytest.mark.parametrize(
    "content",
    [
        b"one line of text\n",
        b"text without an end of its line",
        b"two lines\nof text\n",
        b"\n",
        b"[1]\n",
        b"3\n",
        b'"op_code"\n',
        b'{"a": 1}\n',
        b'{"op_code": 99, "worker_id": "a"}\n',
        bytes(range(256)),
        b"\x89PNG\r\n\x1a\n\x00\x00",
        b"SQLite format 3\x00" + b"\x00" * 84,
        b"\x00" * 100_000,
    ],
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "file"
    file.write_bytes(content)
    text = refusal(f"journal:{file}")
    assert f"{file} is not an Optuna journal" in text
    assert "name another file" in text
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_an_empty_file_becomes_a_journal(tmp_path):
    (tmp_path / "empty").touch()
    assert is_kept(f"journal:{tmp_path}/empty")


def test_a_journal_of_plain_optuna_is_one(tmp_path):
    plain = optuna_journal.JournalFileBackend(f"{tmp_path}/plain")
    optuna.create_study(storage=optuna.storages.JournalStorage(plain), study_name="dogs")
    storage = open_storage(f"journal:{tmp_path}/plain")
    assert [study.study_name for study in storage.get_all_studies()] == ["dogs"]


def test_a_journal_whose_first_line_is_being_written_is_one(tmp_path):
    (tmp_path / "new").write_bytes(b'{"op_code":0,"wor')
    assert open_storage(f"journal:{tmp_path}/new").get_all_studies() == []


def test_a_lock_that_a_killed_process_has_left_is_broken_after_half_a_minute(tmp_path, monkeypatch):
    class Clock:
        """Each look at it takes a second, and no time passes otherwise."""

        now = 0.0
        slept = 0

        def monotonic(self):
            self.now += 1
            return self.now

        def sleep(self, seconds):
            self.slept += 1
            assert self.slept < 1000, "it waits for ever"

    clock = Clock()
    monkeypatch.setattr(optuna_journal, "time", clock)
    lock = tmp_path / "hpt.journal.lock"
    lock.touch()
    assert is_kept(f"journal:{tmp_path}/hpt.journal")
    assert 30 < clock.now < 60
    assert not lock.exists()


@pytest.mark.parametrize("address", ["", "journal", "journal:", "hpt.journal", "/tmp/hpt.journal", "sqlite:file.db"])
def test_an_address_that_cannot_be_read_is_refused_with_examples(address):
    text = refusal(address)
    assert repr(address) in text
    assert "use journal:FILE, sqlite:///FILE or postgresql://" in text


@pytest.mark.parametrize(
    "address", ["oracel://u:secret@host/db", "postgresql+nodriver://u:secret@host/db", "://u:secret@host"]
)
def test_an_unknown_kind_of_database_is_refused_with_examples(address):
    text = refusal(address)
    assert "use journal:FILE" in text
    assert address.replace("secret", "***") in text


@pytest.mark.parametrize("address", ["postgresql://u:secret@host:port/db", "mysql://u:secret@host:1x/db"])
def test_a_port_that_is_no_number_is_refused(address):
    text = refusal(address)
    assert f"cannot read '{address.replace('secret', '***')}'; use journal:FILE" in text
    assert "secret" not in text


def test_sqlite_keeps_what_is_written(tmp_path):
    assert is_kept(f"sqlite:///{tmp_path}/hpt.db")


def test_sqlite_in_a_missing_folder_is_refused(tmp_path):
    address = f"sqlite:///{tmp_path}/no/hpt.db"
    assert refusal(address) == f"storage: {address}: unable to open database file"


@pytest.mark.parametrize("address", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
def test_sqlite_in_memory_is_refused_as_workers_are_other_processes(address):
    text = refusal(address)
    assert f"{address} is an in-memory database" in text
    assert "use sqlite:///FILE" in text


def test_a_file_that_is_no_sqlite_is_refused(tmp_path):
    (tmp_path / "text").write_text("some text\n" * 100)
    assert "file is not a database" in refusal(f"sqlite:///{tmp_path}/text")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_server_that_is_not_there_is_refused_soon_and_without_the_password(unused_port, scheme):
    pytest.importorskip("psycopg")
    start = time.monotonic()
    text = refusal(f"{scheme}://someone:secret@127.0.0.1:{unused_port}/db")
    assert time.monotonic() - start < 5
    assert f"{scheme}://someone:***@127.0.0.1:{unused_port}/db: " in text
    assert "refused" in text
    assert "secret" not in text


def test_a_server_that_does_not_answer_is_given_up(monkeypatch):
    pytest.importorskip("psycopg")
    # libpq's least.
    monkeypatch.setitem(TIMEOUTS, "postgresql", {"connect_timeout": 2})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        text = refusal(f"postgresql://someone:secret@127.0.0.1:{port}/db")
    assert time.monotonic() - start < 10
    assert "timeout" in text
    assert "secret" not in text


def test_a_server_that_speaks_another_protocol_is_refused():
    pytest.importorskip("psycopg")
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            connection, _ = other.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answering = threading.Thread(target=answer, daemon=True)
        answering.start()
        text = refusal(f"postgresql://someone:secret@127.0.0.1:{other.getsockname()[1]}/db?sslmode=disable")
        answering.join()
    assert "secret" not in text


@pytest.mark.parametrize("address", ["postgresql://u:secret@host/db", "postgres://u:secret@host/db"])
def test_without_psycopg_the_message_says_how_to_get_it(monkeypatch, address):
    for name in [name for name in sys.modules if name.split(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    text = refusal(address)
    assert "needs a driver" in text
    assert 'pip install "hpt_mlflow[postgresql]"' in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("journal:hpt.journal", f"optuna-dashboard {Path.cwd()}/hpt.journal"),
        ("journal:~/hpt.journal", f"optuna-dashboard {Path.home()}/hpt.journal"),
        ("journal:/data/hpt.journal", "optuna-dashboard /data/hpt.journal"),
        ("sqlite:///hpt.db", "optuna-dashboard sqlite:///hpt.db"),
    ],
)
def test_the_command_of_the_dashboard(address, command):
    assert dashboard_command(address) == command


def test_the_command_of_the_dashboard_has_no_password():
    words = shlex.split(dashboard_command("postgresql://u:secret@host/db"))
    assert words == ["optuna-dashboard", "postgresql://u:***@host/db"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (StorageInternalError("An exception is raised\nin two lines"), "An exception is raised"),
        (OperationalError("SELECT 1", {}, Exception("server closed the connection\nunexpectedly")), "server closed"),
    ],
)
def test_what_a_storage_raises_becomes_one_line_without_the_password(error, words):
    with pytest.raises(HptError) as caught, storage_errors("postgresql://u:secret@host/db"):
        raise error
    text = str(caught.value)
    assert text.startswith("storage: postgresql://u:***@host/db: ")
    assert words in text
    assert "\n" not in text


def test_the_cause_at_the_bottom_is_what_is_told():
    error = StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = OSError("database is locked\nand more")
    with pytest.raises(HptError, match="^storage: sqlite:///hpt.db: database is locked$"):
        raise_in_storage(error)


def raise_in_storage(error):
    with storage_errors("sqlite:///hpt.db"):
        raise error


@pytest.mark.parametrize("error", [KeyError("name"), HptError("mine"), KeyboardInterrupt()])
def test_what_is_not_of_the_storage_passes(error):
    with pytest.raises(type(error)) as caught, storage_errors("sqlite:///hpt.db"):
        raise error
    assert caught.value is error


def tables_of(file):
    with sqlite3.connect(file) as database:
        return sorted(name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"))


def test_mlflows_own_database_is_refused_and_left_as_it_is(store, tmp_path):
    file = tmp_path / "mlflow.db"
    before = tables_of(file)
    with pytest.raises(HptError, match=r"is MLflow's own database .*; name another database, or use journal:FILE"):
        open_storage(f"sqlite:///{file}")
    assert tables_of(file) == before


def test_a_database_of_another_program_is_refused_and_left_as_it_is(tmp_path):
    file = tmp_path / "shop.db"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE customers (name TEXT)")
    with pytest.raises(HptError, match=r"is the database of another program \(it has customers, ...\)"):
        open_storage(f"sqlite:///{file}")
    assert tables_of(file) == ["customers"]


def test_a_database_of_optuna_is_opened_again(tmp_path):
    address = f"sqlite:///{tmp_path}/hpt.db"
    optuna.create_study(study_name="cats", storage=open_storage(address))
    assert [study.study_name for study in open_storage(address).get_all_studies()] == ["cats"]

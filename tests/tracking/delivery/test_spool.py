import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import safetensors.numpy

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.delivery.spool import (
    Owner,
    Spool,
    SpoolBusyError,
    SpoolError,
    is_at_work,
    read_owner,
    spool_folder,
    spool_root,
    write_in_one_step,
)

# Opens the spool of a run in the name of a process, its own where none is given, and ends with its standard input.
OTHER_PROCESS = """
import os, socket, sys
from hpt_mlflow.tracking.delivery.spool import Owner, Spool, spool_folder
pid = int(sys.argv[1]) if sys.argv[1:] else os.getpid()
spool = Spool.open(spool_folder("run-1"), Owner("run-1", "0", "cats", "", "", pid, socket.gethostname()))
spool.add("tags", {"a": "b"})
print("open", flush=True)
sys.stdin.readline()
"""


def owner(pid=None, host=None):
    return Owner("run-1", "0", "cats", "", "", pid or os.getpid(), host or socket.gethostname())


def kinds(spool):
    return [entry.kind for entry in spool.entries()]


def write_text(text):
    def fill(folder):
        (folder / "file.txt").write_text(text)

    return fill


def half_then_fail(folder):
    (folder / "file.txt").write_text("half")
    raise RuntimeError("broken\nin two lines")


@pytest.fixture
def spool():
    opened = Spool.open(spool_folder("run-1"), owner())
    yield opened
    opened.close()


@pytest.fixture
def other_process():
    """A process that has a spool open."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER_PROCESS, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A filesystem of 1 MiB that spools are on; gives a function that fills it."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("making a small filesystem takes root")
    monkeypatch.setenv("HPT_SPOOL", str(folder))

    def fill():
        with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(b"0" * 512)

    yield fill
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_tilde_is_the_users_home_and_a_new_folder_is_marked_as_a_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HPT_SPOOL", "~/deep/spool")
    assert spool_root() == tmp_path / "deep" / "spool"
    Spool.open(spool_folder("run-1"), Owner("run-1", "0", "cats", "", "", os.getpid(), socket.gethostname())).close()
    assert (spool_root() / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55\n")


def test_entries_come_back_in_order_with_payload_and_files(spool):
    metrics = [{"metrics": [["loss", number / 7, number, number, None]]} for number in range(12)]
    added = [spool.add("metrics", payload) for payload in metrics]
    added.append(spool.add("artifacts", {}, write_text("views")))
    # Neither is an entry.
    for name in (".4711.000000000.json", "notes.json"):
        (spool.folder / name).write_text('{"kind": "tags", "payload": {}}')
    entries = spool.entries()
    assert entries == added
    assert [entry.number for entry in entries] == list(range(13))
    assert [entry.payload["metrics"][0][1] for entry in entries[:-1]] == [number / 7 for number in range(12)]
    assert all(entry.folder is None for entry in entries[:-1])
    assert (entries[-1].folder / "file.txt").read_text() == "views"


def test_numbers_go_on_where_an_earlier_process_stopped(spool):
    spool.add("tags", {"a": "1"})
    spool.add("tags", {"a": "2"})
    spool.remove(spool.entries()[0])
    spool.close()
    again = Spool.open(spool.folder, owner())
    again.add("tags", {"a": "3"})
    assert [entry.payload["a"] for entry in again.entries()] == ["2", "3"]
    again.close()


def test_not_a_number_survives_the_disk(spool):
    spool.add("metrics", {"metrics": [["loss", float("nan"), 0, 0, None], ["loss", float("inf"), 0, 1, None]]})
    (nan, inf) = spool.entries()[0].payload["metrics"]
    assert np.isnan(nan[1])
    assert np.isinf(inf[1])


@pytest.mark.parametrize(
    "text",
    ["", '{"kind": "tags", "payl', '{"kind": "tags"}', '{"payload": {}}', "\x00" * 40, "\udcff", "[]", "7", "null"],
)
def test_what_is_not_a_whole_entry_is_left_out(spool, text):
    for kind in ("tags", "params", "end"):
        spool.add(kind, {})
    (spool.folder / "000000001.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert kinds(spool) == ["tags", "end"]


def test_the_json_appears_only_after_the_files(spool):
    seen = []

    def fill(folder):
        (folder / "file.txt").write_text("views")
        seen.append(kinds(spool))

    spool.add("artifacts", {}, fill)
    assert seen == [[]]
    assert kinds(spool) == ["artifacts"]


@pytest.mark.parametrize("text", [None, ""])
def test_files_that_a_killed_process_left_half_written_are_in_nobodys_way(spool, text):
    spool.add("tags", {})
    (spool.folder / "000000001").mkdir()
    (spool.folder / "000000001" / "half.txt").write_text("half")
    if text is not None:
        (spool.folder / "000000001.json").write_text(text)
    spool.close()
    again = Spool.open(spool_folder("run-1"), owner())
    entry = again.add("artifacts", {}, write_text("views"))
    assert [file.name for file in entry.folder.iterdir()] == ["file.txt"]
    assert kinds(again) == ["tags", "artifacts"]
    again.close()


def test_files_that_cannot_be_written_raise_and_leave_nothing(spool):
    with pytest.raises(SpoolError, match="^broken$"):
        spool.add("artifacts", {}, half_then_fail)
    assert {file.name for file in spool.folder.iterdir()} <= {"run.json", "lock"}
    spool.add("artifacts", {}, write_text("views"))
    assert kinds(spool) == ["artifacts"]


def test_a_full_disk_refuses_files_and_leaves_nothing_half_behind(small_disk):
    spool = Spool.open(spool_folder("run-1"), owner())
    spool.add("tags", {"before": "x"})
    small_disk()
    before = {str(file.relative_to(spool.folder)) for file in spool.folder.rglob("*")}

    def fill(folder):
        safetensors.numpy.save_file({"a": np.zeros(100_000)}, folder / "state.safetensors")

    with pytest.raises(SpoolError) as caught:
        spool.add("state", {"step": 1}, fill)
    assert "\n" not in str(caught.value)
    assert {str(file.relative_to(spool.folder)) for file in spool.folder.rglob("*")} == before
    assert kinds(spool) == ["tags"]


def test_a_full_disk_keeps_small_things_in_memory(small_disk):
    spool = Spool.open(spool_folder("run-1"), owner())
    small_disk()
    entry = spool.add("tags", {"a": "b" * 5000})
    assert "No space left" in entry.unwritten
    assert entry.payload == {"a": "b" * 5000}
    assert spool.entries() == []
    assert not list(spool.folder.glob(".*.json"))


def test_a_disk_with_room_again_takes_entries_again(small_disk):
    spool = Spool.open(spool_folder("run-1"), owner())
    small_disk()
    with pytest.raises(SpoolError):
        spool.add("artifacts", {}, write_text("views" * 1000))
    (spool_root() / "filler").unlink()
    assert spool.add("tags", {"a": "b"}).unwritten == ""
    spool.add("artifacts", {}, write_text("views" * 1000))
    assert kinds(spool) == ["tags", "artifacts"]


def test_a_full_disk_at_the_start_is_told_with_what_to_do(small_disk):
    spool_folder("run-1").mkdir()
    small_disk()
    with pytest.raises(HptError, match="No space left.*HPT_SPOOL"):
        Spool.open(spool_folder("run-1"), owner())


def test_a_second_open_is_busy_at_once(spool):
    start = time.monotonic()
    with pytest.raises(SpoolBusyError, match="another process"):
        Spool.open(spool.folder, owner(), wait_seconds=40)
    assert time.monotonic() - start < 20
    with pytest.raises(SpoolBusyError):
        Spool.open(spool.folder, wait_seconds=0)


def test_a_spool_is_free_after_close(spool):
    spool.add("tags", {})
    spool.close()
    again = Spool.open(spool.folder, owner())
    assert kinds(again) == ["tags"]
    again.close()


def test_a_living_process_is_not_waited_for(other_process):
    other_process()
    start = time.monotonic()
    with pytest.raises(SpoolBusyError):
        Spool.open(spool_folder("run-1"), owner(), wait_seconds=40)
    assert time.monotonic() - start < 20


def test_what_a_killed_process_wrote_is_there_and_free(other_process):
    process = other_process()
    process.send_signal(signal.SIGKILL)
    process.wait()
    spool = Spool.open(spool_folder("run-1"), owner(), wait_seconds=0)
    assert [entry.payload for entry in spool.entries()] == [{"a": "b"}]
    spool.close()


def test_what_a_killed_process_leaves_running_is_waited_for(other_process):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    process = other_process(str(gone.pid))
    with pytest.raises(SpoolBusyError):
        Spool.open(spool_folder("run-1"), wait_seconds=0)
    timer = threading.Timer(0.3, process.stdin.close)
    timer.start()
    spool = Spool.open(spool_folder("run-1"), owner(), wait_seconds=60)
    assert kinds(spool) == ["tags"]
    spool.close()
    timer.join()


def test_the_owner_is_who_opened_it_last(spool):
    spool.add("tags", {})
    spool.close()
    other = Spool.open(spool.folder, owner(host="elsewhere"))
    assert read_owner(spool.folder) == owner(host="elsewhere") == other.owner
    other.close()


def test_opening_without_an_owner_reads_who_it_was(spool):
    spool.add("tags", {})
    spool.close()
    read = Spool.open(spool.folder)
    assert read.owner == owner()
    read.close()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"run_id": "x"}'])
def test_a_damaged_owner_is_none(spool, text):
    (spool.folder / "run.json").write_text(text)
    assert read_owner(spool.folder) is None


def test_a_run_is_at_work_while_its_process_lives(other_process):
    assert not is_at_work(spool_folder("run-1"))
    process = other_process()
    assert is_at_work(spool_folder("run-1"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not is_at_work(spool_folder("run-1"))


def test_a_process_of_another_machine_is_not_at_work_here(spool):
    (spool.folder / "run.json").write_text(json.dumps(vars(owner(host="elsewhere"))))
    assert not is_at_work(spool_folder("run-1"))


def test_close_removes_a_folder_without_entries(spool):
    entry = spool.add("artifacts", {}, write_text("views"))
    for _ in range(2):
        spool.remove(entry)
    (spool.folder / "000000007").mkdir()
    spool.close()
    assert not spool.folder.exists()


def test_close_keeps_a_folder_with_entries(spool):
    spool.add("artifacts", {}, write_text("views"))
    spool.close()
    assert (spool.folder / "000000000" / "file.txt").read_text() == "views"


def test_writing_in_one_step_replaces_the_whole_file_or_nothing(tmp_path):
    file = tmp_path / "a.json"
    write_in_one_step(file, "one")
    write_in_one_step(file, "two")
    with pytest.raises(UnicodeEncodeError):
        write_in_one_step(file, "half\udcff")
    assert file.read_text() == "two"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_the_root_is_hpt_spool_or_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HPT_SPOOL", str(tmp_path))
    assert spool_folder("run-1") == tmp_path / "run-1"
    monkeypatch.delenv("HPT_SPOOL")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert spool_root().name == "spool"
    assert tmp_path in spool_root().parents

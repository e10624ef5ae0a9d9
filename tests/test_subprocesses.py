"""Processes of this package, started for real."""

import errno
import subprocess
import sys

import pytest

from hpt_mlflow import subprocesses
from hpt_mlflow.errors import HptError
from hpt_mlflow.subprocesses import PACKAGE_FOLDER, import_variables, start_python

TALKING = "hpt_mlflow.signals"  # Does nothing when it is run.
attempts = []


@pytest.fixture(scope="module")
def every_attempt_is_heard():
    """Call what is in `attempts` whenever this process is about to start another; such a hook stays for good."""

    def hook(event, _):
        if event == "subprocess.Popen":
            for attempt in attempts:
                attempt()

    sys.addaudithook(hook)


@pytest.fixture
def on_attempt(every_attempt_is_heard):
    yield attempts.append
    attempts.clear()


def test_a_module_runs_with_its_words_and_its_variables(tmp_path):
    with open(tmp_path / "out", "wb") as out:
        process = start_python("json.tool", "--compact", stdin=subprocess.PIPE, stdout=out, variables={"PATH": ""})
    process.communicate(b'{"a": 1}')
    assert process.returncode == 0
    assert (tmp_path / "out").read_text().strip() == '{"a":1}'


def test_a_python_that_is_not_there_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(
        HptError, match=r"^cannot start another process \(.*No such file.*; check free memory"
    ) as caught:
        start_python(TALKING)
    assert "\n" not in str(caught.value)


def test_what_fails_once_is_tried_again(monkeypatch, tmp_path, on_attempt):
    monkeypatch.setattr(subprocesses, "RETRY_SECONDS", 0)
    python = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    count = []

    def there_from_the_second_on():
        count.append(python.exists())
        if len(count) == 2:
            python.write_text("#!/bin/sh\nexit 7\n")
            python.chmod(0o755)

    on_attempt(there_from_the_second_on)
    assert start_python(TALKING).wait() == 7
    assert len(count) == 2


def test_only_two_attempts_are_made(monkeypatch, on_attempt):
    monkeypatch.setattr(subprocesses, "RETRY_SECONDS", 0)
    monkeypatch.setattr(sys, "executable", "/no/python")
    count = []
    on_attempt(lambda: count.append(1))
    with pytest.raises(HptError) as caught:
        start_python(TALKING)
    assert caught.value.__cause__.errno == errno.ENOENT
    assert len(count) == 2


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks into the folder it stands in")
def test_nothing_of_the_users_folder_is_executed(tmp_path, monkeypatch):
    for name in ("random", "queue", "hpt_mlflow", "tqdm"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    # Imports all of MLflow: there is no such run to look after.
    process = start_python("hpt_mlflow.tracking.delivery.sync", stdin=subprocess.DEVNULL)
    assert process.wait() == 0
    assert not (tmp_path / "executed").exists()


def test_a_package_that_is_installed_does_not_come_before_python(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocesses, "PACKAGE_FOLDER", tmp_path / "site-packages")
    assert "PYTHONPATH" not in import_variables()


def test_a_package_that_is_not_installed_is_found_first_and_once(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "mine")
    expected = f"{PACKAGE_FOLDER}:{tmp_path / 'mine'}"
    assert import_variables()["PYTHONPATH"] == expected
    monkeypatch.setenv("PYTHONPATH", expected)
    assert import_variables()["PYTHONPATH"] == expected

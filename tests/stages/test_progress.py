"""What a training shows of itself."""

import pytest

from hpt_mlflow.cores import CoreShare
from hpt_mlflow.stages import progress
from hpt_mlflow.stages.progress import ProgressDisplay


@pytest.fixture
def lines(monkeypatch, capfd):
    """Lines of a training of five steps, each looked at."""

    def shown(complaints):
        answers = iter(complaints)
        monkeypatch.setattr(progress, "LINE_SECONDS", 0)
        monkeypatch.setattr(CoreShare, "complaint", lambda self: next(answers))
        with ProgressDisplay("pretrain digits", 5) as display:
            for step in range(1, 6):
                display.advance(step, {})
        return [line for line in capfd.readouterr().err.splitlines() if "busy" in line]

    return shown


def test_a_busy_machine_is_named_once(lines):
    assert lines(["", "busy 1", "busy 2", "busy 3", "busy 4"]) == ["pretrain digits: busy 1"]


def test_a_quiet_machine_is_not_named(lines):
    assert lines([""] * 5) == []

import pytest
import torch

from hpt_mlflow.pace import MOST_AHEAD, Pace


@pytest.fixture
def done(monkeypatch):
    """Events of a GPU in the order in which they were recorded and waited for."""
    done = []

    class Event:
        count = 0

        def __init__(self, blocking):
            assert blocking
            self.number = Event.count
            Event.count += 1

        def record(self, stream):
            done.append(("asked", self.number, stream))

        def synchronize(self):
            done.append(("waited", self.number))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", str)
    return done


def test_the_processor_waits_for_a_step_of_some_steps_before(done):
    pace = Pace(torch.device("cuda", 1))
    for _ in range(MOST_AHEAD):
        pace.end_step()
    assert done == [("asked", step, "cuda:1") for step in range(MOST_AHEAD)]
    pace.end_step()
    pace.end_step()
    assert done[MOST_AHEAD:] == [
        ("asked", MOST_AHEAD, "cuda:1"),
        ("waited", 0),
        ("asked", MOST_AHEAD + 1, "cuda:1"),
        ("waited", 1),
    ]


def test_all_is_waited_for_in_the_end(done):
    pace = Pace(torch.device("cuda", 1))
    pace.end_step()
    pace.catch_up()
    pace.catch_up()
    assert done == [("asked", 0, "cuda:1"), ("waited", 0)]


def test_a_processor_waits_for_nothing(done):
    pace = Pace(torch.device("cpu"))
    pace.end_step()
    pace.catch_up()
    assert not done

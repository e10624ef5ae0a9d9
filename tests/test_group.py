"""What processes tell each other, over real connections."""

import os
import time
from contextlib import suppress

import pytest
import torch
from together import KILLED, in_processes

from hpt_mlflow.errors import HptError
from hpt_mlflow.group import (
    ALONE,
    SIDE_BY_SIDE,
    VARIABLES,
    Group,
    LostProcessError,
    end_if_abandoned,
    is_first,
    joins_others,
    losses,
    own_device,
    processes_here,
    training_group,
    was_restarted,
)
from hpt_mlflow.settings import PretrainSettings
from hpt_mlflow.stages.processes.children import Children
from hpt_mlflow.stages.processes.launch import is_launched_here

CPU = torch.device("cpu")
# What the first process says, and what the others say.
TEXTS = [
    (None, 1),
    ("grün 猫 \n\0 \ud83d", ""),
    ({"deep": [1, 2.5, None, True, {"é": []}]}, "other"),
    ("long" * 300_000, "short"),
    ([], "longer than that of the first"),
    (0.1 + 0.2, 1e-320),
]


def say(group, line, values):
    mine = [one[min(group.rank, 1)] for one in values]
    return [group.collect(value) for value in mine], [group.share(value) for value in mine]


@pytest.mark.parametrize("size", [2, 3])
def test_json_comes_to_all_in_the_order_of_the_ranks(size):
    collected = [[first, *[other] * (size - 1)] for first, other in TEXTS]
    for got in in_processes(say, TEXTS, size=size):
        assert got == (collected, [first for first, _ in TEXTS])


def ask(group, line):
    first = group.first
    return group.any(False, first, not first, True, False), group.any(first)


def test_a_flag_of_any_process_counts_for_all():
    assert in_processes(ask) == [([False, True, True, True, False], [True])] * 2


def tensors(rank):
    """Tensors of a process, of the types that are gathered, in memory laid out in several ways."""
    generator = torch.Generator().manual_seed(rank)
    images = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8, generator=generator)
    floats = torch.randn(4, 6, generator=generator)
    return {
        "images": images,
        "channels last": images.to(memory_format=torch.channels_last),
        "part of another": torch.stack([images, images.flip(0)], dim=1)[:, 1],
        "permuted": images.permute(0, 2, 3, 1),
        "floats": floats,
        "transposed": floats.T,
        "every second": floats[:, ::2],
        "expanded": floats[:1].expand(3, 6),
        "integers": torch.tensor([2**62 + rank, -rank]),
        "one": torch.tensor([rank]),
        "empty": torch.empty(0, 3),
    }


def gather(group, line):
    mine = tensors(group.rank)
    gathered = {name: group.gather(tensor) for name, tensor in mine.items()}
    assert all(torch.equal(tensor, mine[name]) for name, tensor in tensors(group.rank).items())
    return gathered


def test_tensors_are_joined_whatever_their_layout():
    expected = {name: torch.cat([tensors(rank)[name] for rank in range(2)]) for name in tensors(0)}
    for gathered in in_processes(gather):
        for name, tensor in expected.items():
            assert torch.equal(gathered[name], tensor), name
            assert gathered[name].dtype == tensor.dtype


def average(group, line):
    tensors = torch.full((2, 3), float(group.rank)), torch.tensor([1.0, float("nan"), 3.0 + 2 * group.rank]).flip(0)
    return [*map(group.mean, tensors), group.mean(torch.empty(0, 3)), group.mean(torch.tensor(4.0 * group.rank))]


def test_mean_is_that_of_all_processes():
    for whole, vector, empty, scalar in in_processes(average):
        assert torch.equal(whole, torch.full((2, 3), 0.5))
        assert vector[0] == 4
        assert vector[1].isnan()
        assert vector[2] == 1
        assert empty.shape == (0, 3)
        assert scalar == 2


def send(group, line):
    everything = tensors(group.rank) | {"expanded": torch.zeros(1, 1), "number": torch.tensor(7 + group.rank)}
    whole = torch.full((4, 6), float(group.rank))
    everything["column"] = whole[:, 2]
    for tensor in everything.values():
        group.send_from_first(tensor)
    return everything, whole


def test_values_of_the_first_process_are_put_in_place():
    (first, whole), (second, other) = in_processes(send)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(first[name], tensor) for name, tensor in tensors(0).items() if name != "expanded")
    assert torch.equal(whole, torch.zeros(4, 6))
    expected = torch.ones(4, 6)
    expected[:, 2] = 0
    assert torch.equal(other, expected)


OPERATIONS = {
    "share": lambda group: group.share("x" * 1000),
    "collect": lambda group: group.collect({}),
    "any": lambda group: group.any(True),
    "gather": lambda group: group.gather(torch.zeros(1_000_000)),
    "mean": lambda group: group.mean(torch.zeros(3)),
    "send_from_first": lambda group: group.send_from_first(torch.zeros(1_000_000)),
}


def be_left(group, line, operation, victim, times):
    """Do something together, so that all connections stand; then one is killed while the others wait for it."""
    for _ in range(times):
        OPERATIONS[operation](group)
    if group.rank == victim:
        line.wait_to_be_killed()
    line.about_to_wait()
    began = time.monotonic()
    try:
        # A sender learns of a loss when it sends again.
        for _ in range(10):
            OPERATIONS[operation](group)
    except LostProcessError as error:
        return str(error), time.monotonic() - began
    return "noticed nothing", time.monotonic() - began


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_process_that_is_gone_is_noticed_at_once(operation, victim):
    answers = in_processes(be_left, operation, victim, 1, seconds=30)
    assert answers.pop(victim) == KILLED
    ((said, seconds),) = answers
    assert said.startswith("another process of this training has ended (")
    assert "\n" not in said
    assert seconds < 10


@pytest.mark.parametrize("victim", [0, 2])
def test_all_others_notice_that_one_is_gone(victim):
    answers = in_processes(be_left, "any", victim, 0, size=3, seconds=30)
    assert answers.pop(victim) == KILLED
    assert [said.startswith("another process of this training has ended (") for said, _ in answers] == [True, True]


def test_a_group_of_one_is_alone():
    tensor = torch.ones(3)
    assert Group(0, 1) == ALONE
    assert ALONE.first
    assert ALONE.part(7) == slice(0, 7)
    assert ALONE.share("x") == "x"
    assert ALONE.collect([1]) == [[1]]
    assert ALONE.any(True, False) == [True, False]
    assert ALONE.gather(tensor) is tensor
    assert ALONE.mean(tensor) is tensor
    ALONE.send_from_first(tensor)
    assert torch.equal(tensor, torch.ones(3))


def test_parts_of_all_processes_are_the_whole():
    things = list(range(12))
    for size in (1, 2, 3, 4):
        groups = [Group(rank, size) for rank in range(size)]
        assert [thing for group in groups for thing in things[group.part(12)]] == things
        assert {len(things[group.part(12)]) for group in groups} == {12 // size}
        assert [group.first for group in groups] == [True] + [False] * (size - 1)


def introduce(group, line):
    gathered = group.gather(torch.tensor([group.rank])).tolist()
    return gathered, is_first(), processes_here(), was_restarted(), is_launched_here(PretrainSettings())


def test_processes_join_by_the_variables_of_kubernetes_operators():
    answers = in_processes(introduce, size=2, by_torchrun=False)
    assert answers == [([0, 1], True, 1, False, False), ([0, 1], False, 1, False, False)]


@pytest.fixture
def variables(monkeypatch):
    """Sets the variables that say how this process was started, and removes all others of them."""

    def set_variables(**values):
        for name in (
            *VARIABLES,
            SIDE_BY_SIDE,
            "TORCHELASTIC_RUN_ID",
            "TORCHELASTIC_RESTART_COUNT",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
        ):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


COMPLETE = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_variable_that_is_missing_is_named(variables, missing):
    variables(**{name: value for name, value in COMPLETE.items() if name != missing})
    with pytest.raises(HptError, match=rf"^{missing}: not set, though WORLD_SIZE=2, ") as caught:
        joins_others()
    assert "\n" not in str(caught.value)


def test_several_variables_that_are_missing_are_named(variables):
    variables(WORLD_SIZE="2", RANK="0", MASTER_PORT="")
    with pytest.raises(HptError, match=r"^MASTER_ADDR, MASTER_PORT: not set, though WORLD_SIZE=2, RANK=0 says"):
        joins_others()


def test_trainings_side_by_side_count_with_all_their_processes(variables):
    variables(**COMPLETE, LOCAL_WORLD_SIZE="2", HPT_SIDE_BY_SIDE="3")
    assert processes_here() == 6
    variables(HPT_SIDE_BY_SIDE="3")
    assert processes_here() == 3


@pytest.mark.parametrize(("one_training", "expected"), [(False, "6"), (True, "3")])
def test_processes_know_how_many_trainings_go_on(variables, tmp_path, one_training, expected):
    variables(HPT_SIDE_BY_SIDE="3")
    started = Children("hpt_mlflow.none", 2, None, tmp_path, one_training)
    assert (os.environ | started._variables)["HPT_SIDE_BY_SIDE"] == expected


@pytest.mark.parametrize(
    "alone", [{}, {"WORLD_SIZE": "1"}, COMPLETE | {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "8"}, {"RANK": "3"}]
)
def test_a_process_without_others_is_the_first(variables, alone):
    variables(**alone)
    assert not joins_others()
    assert is_first()
    assert processes_here() == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: 'two' is not a whole number"),
        ({"RANK": "master"}, "RANK: 'master' is not a whole number"),
        ({"RANK": "2"}, "RANK: 2 is not one of the 2 processes"),
        ({"RANK": "-1"}, "RANK: -1 is not one of the 2 processes"),
    ],
)
def test_variables_that_cannot_be_right_are_refused(variables, wrong, words):
    variables(**COMPLETE | wrong)
    with pytest.raises(HptError, match=f"^{words}") as caught:
        joins_others()
    assert "\n" not in str(caught.value)


def test_without_torchrun_a_process_takes_the_first_gpu_where_nobody_numbers_it(variables):
    variables(**COMPLETE)
    assert not is_first()
    with pytest.raises(HptError, match="there is no GPU for process 1"):
        own_device(torch.device("cuda"))


@pytest.mark.parametrize(
    ("given", "joins", "restarted"),
    [
        ({}, False, False),
        ({"WORLD_SIZE": "2"}, False, False),  # Slurm and others set it as well.
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "1"}, False, False),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}, True, False),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "0"}, True, False),
        ({"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "TORCHELASTIC_RESTART_COUNT": "2"}, True, True),
    ],
)
def test_torchrun_says_whether_there_are_others(variables, given, joins, restarted):
    variables(**given)
    assert joins_others() == joins
    assert was_restarted() == restarted
    if not joins:
        with training_group(CPU) as group:
            assert group is ALONE


def test_a_process_takes_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = torch.device("cuda")
    assert own_device(gpu) == gpu
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device(gpu) == torch.device("cuda", 1)
    assert own_device(CPU) == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(HptError, match="there is no GPU for process 3: torch sees 2") as caught:
        own_device(gpu)
    assert "\n" not in str(caught.value)


NCCL = """NCCL error in: ProcessGroupNCCL.cpp:3690, {}, NCCL version 2.27.5
{}: {}
Last error:
{}
"""


@pytest.mark.parametrize(
    ("kind", "last", "said"),
    [
        ("ncclSystemError", "Error while creating shared memory segment /dev/shm/nccl-x (size 33030532)", HptError),
        ("ncclInvalidUsage", "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 4000", HptError),
        ("ncclSystemError", "socketProgress: Connection closed by remote peer node1<4000>", LostProcessError),
        ("ncclUnhandledCudaError", "", HptError),
        ("ncclRemoteError", "a remote process exited or there was a network error", LostProcessError),
    ],
)
def test_what_nccl_lacks_is_told_and_not_taken_for_a_process_that_is_gone(kind, last, said):
    with pytest.raises(HptError) as caught, losses():
        raise torch.distributed.DistBackendError(NCCL.format("some error", kind, "some words", last))
    assert type(caught.value) is said
    assert "\n" not in str(caught.value)
    assert (last in str(caught.value)) == (said is HptError)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("fails", [False, True])
def test_who_fails_does_not_wait_for_the_others_as_nccl_would(variables, monkeypatch, device, fails):
    variables(**COMPLETE)
    ended = []
    for name in ("init_process_group", "get_rank", "get_world_size"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: 1)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: ended.append("all"))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with suppress(KeyError), training_group(torch.device(device)):
        if fails:
            raise KeyError
    assert ended == ([] if fails and device == "cuda" else ["all"])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: not ended)
    monkeypatch.setattr(os, "_exit", ended.append)
    end_if_abandoned(3, lambda: ended.append("said"))
    assert ended == (["said", 3] if fails and device == "cuda" else ["all"])


def test_a_group_that_was_left_is_not_joined_again(variables, monkeypatch):
    variables(**COMPLETE)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with (
        pytest.raises(HptError, match=r"torch\.distributed is initialised already .*; start all processes again"),
        training_group(CPU),
    ):
        pass

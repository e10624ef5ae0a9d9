from __future__ import annotations

import json
import math
import multiprocessing
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import NopPruner
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from postgresql import postgresql  # noqa: F401

from hpt_mlflow.augment.subset import AUGMENTATIONS, Strengths, format_strengths, parse_strengths
from hpt_mlflow.errors import HptError
from hpt_mlflow.tuning import search as search_module
from hpt_mlflow.tuning.halving import Halving
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, RUNNING, WAITING
from hpt_mlflow.tuning.search import MOST_ATTEMPTS, SharedSearch, attributes_of
from hpt_mlflow.tuning.space import PAPER_SUBSETS, STRENGTHS, Space
from hpt_mlflow.tuning.storage import open_storage, storage_errors
from hpt_mlflow.tuning.trials import ATTEMPT, OWNER, PLACE, REASON, RUN, TAKEN

WORKERS = 4
SPACE = Space(AUGMENTATIONS)
SEARCH = Space(AUGMENTATIONS, with_strengths=True)
HALVING = Halving((2, 4, 8), 2)
IDENTITY = {"data": "cats", "steps": 64, "augment": ["crop", "flip"], "root": None}
# Runs Python code with `search`, a shared search; says what it prints, and waits until it is killed.
KILLED = """
import sys
from optuna.storages.journal import JournalFileOpenLock
from test_shared_search import shared
search = shared(sys.argv[1], sys.argv[2])
{code}
print("ready", flush=True)
sys.stdin.read()
"""
barrier = None
# By address, databases that this process has open: each takes a connection, and a moment to open.
databases = {}


def opened(address):
    """A storage; of a journal, one of its own, as another process would have it."""
    if address.startswith("journal:"):
        return open_storage(address)
    if address not in databases:
        databases[address] = open_storage(address)
    return databases[address]


def shared(address, name="cats", space=SPACE, seed=0, halving=None):
    return SharedSearch(opened(address), name, space, NopPruner(), seed, halving)


def made(address, queue=(), maximise=True, **settings):
    """A search with its trials queued."""
    search = shared(address, **settings)
    search.create(IDENTITY, maximise)
    search.fill(queue)
    return search


def subset_of(search, trial):
    return search.space.suggest(trial)[0]


def places(search, *states):
    return sorted(trial.user_attrs[PLACE] for trial in search.trials(*states))


def states(search):
    return [trial.state for trial in search.trials()]


@pytest.fixture(params=["journal", "postgresql"])
def address(request, tmp_path):
    if request.param == "journal":
        return f"journal:{tmp_path}/hpt.journal"
    return request.getfixturevalue("database")


@pytest.fixture
def database(postgresql):  # noqa: F811
    """Without a search, but with Optuna's tables, which take a while to make. Ids of trials are not their numbers."""
    if not hasattr(postgresql, "common"):
        postgresql.common = postgresql.new_database()
        opened(postgresql.common)
    postgresql.execute(postgresql.common, "TRUNCATE studies, trials CASCADE")
    return postgresql.common


@pytest.fixture(params=["journal", "postgresql", "sqlite"])
def new_address(request, tmp_path):
    """Of a storage that nobody has opened."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgresql").new_database()
    return {"journal": f"journal:{tmp_path}/new.journal", "sqlite": f"sqlite:///{tmp_path}/new.db"}[request.param]


@pytest.fixture(scope="session")
def crew():
    """Processes that run a function at the same time; gives what it gives each."""
    context = multiprocessing.get_context("spawn")
    arguments = (context.Barrier(WORKERS, timeout=60),)
    with ProcessPoolExecutor(WORKERS, context, _join_crew, arguments) as pool:

        def run(function, *arguments):
            waiting = [pool.submit(_at_once, function, place, arguments) for place in range(WORKERS)]
            return [each.result(timeout=120) for each in waiting]

        yield run


@pytest.fixture
def killed():
    """A process that is killed once it has done something with a search."""

    def run(code, address, name="cats"):
        command = [sys.executable, "-c", KILLED.format(code=code), address, name]
        variables = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        ) as process:
            try:
                assert process.stdout.readline() == "ready\n"
            finally:
                process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL

    return run


def _join_crew(shared_barrier):
    global barrier  # noqa: PLW0603
    barrier = shared_barrier


def _at_once(function, place, arguments):
    barrier.wait()
    return function(place, *arguments)


# What the processes of a crew do; the first argument is the place of the process.


def create_many(place, address, names):
    storage = opened(address)
    studies = [SharedSearch(storage, name, SPACE, NopPruner(), seed=0) for name in names]
    return [search.create(IDENTITY, maximise=True) for search in studies]


def create_another(place, address):
    try:
        return shared(address).create(IDENTITY | {"seed": place}, maximise=True)
    except HptError as error:
        return str(error)


def take_all(place, address, with_strengths):
    """Claim until nothing is left; gives numbers and subsets."""
    search = shared(address, space=SEARCH if with_strengths else SPACE)
    taken = []
    while trial := search.claim(f"worker {place}"):
        taken.append((trial.number, subset_of(search, trial)))
        trial.report(0.5, 1)
        search.end(trial, TrialState.COMPLETE, 0.5)
    return taken


def halve(search, trial, scores):
    """Train a trial to its target; gives the place and the target."""
    place, target = trial.user_attrs[PLACE], search.target(trial)
    for step in HALVING.rungs:
        if step <= target:
            trial.report(scores[place], step)
    search.end(trial, TrialState.COMPLETE if target == HALVING.rungs[-1] else TrialState.PRUNED, scores[place])
    return place, target


def halve_all(place, address, scores):
    """Claim until nothing is left for now; gives what was trained."""
    search = shared(address, halving=HALVING)
    done = []
    while trial := search.claim(f"worker {place}"):
        done.append(halve(search, trial, scores))
    return done


def give_up_all(place, address):
    return [trial.number for trial in shared(address).give_up_lost(lambda trial: False)]


def end_or_give_up(place, address, trials):
    """Half of the processes complete all trials, the others give them up; gives which succeeded at each."""
    search = shared(address)
    succeeded = []
    for trial in search.trials()[:trials]:
        if place % 2:
            succeeded.append(search.give_up(trial, "its worker was lost"))
            continue
        try:
            search.end(trial, TrialState.COMPLETE, float(place))
            succeeded.append(True)
        except UpdateFinishedTrialError:
            succeeded.append(False)
    return succeeded


def open_only(place, address):
    return len(opened(address).get_all_studies())


# Making


def test_a_study_is_made_once(address):
    search = shared(address)
    assert search.create(IDENTITY, maximise=True)
    assert not search.create(IDENTITY, maximise=True)
    assert not shared(address).create(dict(reversed(IDENTITY.items())), maximise=True)


def test_of_several_processes_that_make_a_study_at_once_one_does(address, crew):
    names = [f"study {i}" for i in range(6)]
    by_process = crew(create_many, address, names)
    assert [sum(each) for each in zip(*by_process, strict=True)] == [1] * len(names)
    assert all(json.loads(attributes_of(opened(address), name)["hpt.identity"]) == IDENTITY for name in names)


def test_of_several_processes_that_make_another_study_at_once_one_does(address, crew):
    said = crew(create_another, address)
    assert said.count(True) == 1
    others = [text for text in said if text is not True]
    assert all(text.startswith("study: 'cats' exists with other settings: here seed ") for text in others)


def test_a_new_storage_may_be_opened_by_several_processes_at_once(new_address, crew):
    assert crew(open_only, new_address) == [0] * WORKERS


@pytest.mark.parametrize(("maximise", "direction"), [(True, "MAXIMIZE"), (False, "MINIMIZE")])
def test_the_direction_of_a_study(address, maximise, direction):
    assert made(address, maximise=maximise).optuna_study().direction.name == direction


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"steps": 32}, "here steps 32 instead of 64;"),
        ({"data": "dogs", "root": "/data"}, "here data 'dogs' instead of 'cats', root '/data' instead of None;"),
        ({"augment": ["crop"]}, "here augment ['crop'] instead of ['crop', 'flip'];"),
        ({"seed": 3}, "here seed 3 instead of None;"),
    ],
)
def test_another_study_of_the_same_name_is_refused(address, changed, words):
    search = made(address, [{}] * 2)
    with pytest.raises(HptError) as caught:
        search.create(IDENTITY | changed, maximise=True)
    text = str(caught.value)
    assert text.startswith("study: 'cats' exists with other settings: ")
    assert words in text
    assert "choose another name" in text
    assert "\n" not in text


def test_a_setting_that_the_study_has_and_we_do_not_is_another_study(address):
    search = made(address)
    with pytest.raises(HptError, match="here data None instead of 'cats';"):
        search.check_identity({name: value for name, value in IDENTITY.items() if name != "data"})


@pytest.mark.parametrize("trials", [0, 1])
def test_a_study_of_others_is_refused(address, monkeypatch, trials):
    monkeypatch.setattr(search_module, "IDENTITY_SECONDS", 0.0 if not trials else 60.0)
    theirs = optuna.create_study(storage=opened(address), study_name="cats")
    for _ in range(trials):
        theirs.enqueue_trial({})
    start = time.monotonic()
    with pytest.raises(HptError, match="^study: 'cats' exists and was not made by hpt tune; choose another name$"):
        shared(address).create(IDENTITY, maximise=True)
    assert time.monotonic() - start < 10


def test_what_is_noted_of_a_study(address):
    storage = opened(address)
    assert attributes_of(storage, "cats") == {}
    search = made(address)
    search.set_attribute("hpt.run_id", "a")
    search.set_attribute("hpt.run_id", "b")
    assert attributes_of(storage, "cats")["hpt.run_id"] == "b"
    assert attributes_of(storage, "dogs") == {}


# Queueing


def test_a_queue_is_filled_once(address):
    search = made(address)
    queue = SPACE.queue(7, seed=0)
    search.fill(queue)
    search.fill(queue)
    shared(address).fill(queue)
    assert states(search) == [TrialState.WAITING] * 7
    assert places(search) == list(range(7))
    assert [trial.system_attrs["fixed_params"] for trial in search.trials()] == queue


def test_a_queue_grows_by_what_is_new(address):
    search = made(address, SPACE.queue(3, seed=0))
    search.end(search.claim("me"), TrialState.COMPLETE, 0.5)
    search.give_up(search.claim("me"), "its worker was lost")
    search.fill(SPACE.queue(5, seed=0))
    assert places(search) == [0, 1, 1, 2, 3, 4]
    search.fill(SPACE.queue(2, seed=0))
    assert len(search.trials()) == 6
    assert {record.subset for record in search.records()} == set(SPACE.subsets(0)[:5])


def test_trials_come_in_the_order_of_the_queue(address):
    search = made(address, SPACE.queue(6, seed=1))
    assert [subset_of(search, search.claim("me")) for _ in range(6)] == SPACE.subsets(1)[:6]


def test_where_none_is_left_there_is_nothing_to_claim(address):
    search = made(address, SPACE.queue(1, seed=0))
    assert search.claim("me").number == 0
    assert search.claim("me") is None
    assert shared(address).claim("you") is None
    assert states(search) == [TrialState.RUNNING]


def test_of_no_trials_there_is_nothing_to_claim(address):
    search = made(address)
    assert search.claim("me") is None
    assert search.trials() == []


def test_a_claimed_trial_says_whose_it_is(address):
    search = made(address, SPACE.queue(2, seed=0))
    search.claim("me")
    running, waiting = search.trials()
    assert running.user_attrs.pop(TAKEN) <= time.time()
    assert running.user_attrs == {PLACE: 0, ATTEMPT: 1, OWNER: "me"}
    assert running.datetime_start is not None
    assert waiting.user_attrs == {PLACE: 1, ATTEMPT: 1}
    assert waiting.datetime_start is None


def test_several_processes_take_each_subset_once(new_address, crew):
    address = new_address
    search = made(address, SPACE.queue(None, seed=0))
    taken = [each for of_process in crew(take_all, address, False) for each in of_process]
    assert sorted(taken) == list(enumerate(SPACE.subsets(0)))
    assert states(search) == [TrialState.COMPLETE] * 32
    assert Counter(record.subset for record in search.records()) == dict.fromkeys(SPACE.subsets(0), 1)


@pytest.mark.parametrize("budget", [1, 11])
def test_several_processes_make_as_many_trials_as_there_are_in_the_budget(address, crew, budget):
    search = made(address, SEARCH.queue(budget, seed=0), space=SEARCH)
    taken = [each for of_process in crew(take_all, address, True) for each in of_process]
    assert sorted(number for number, _ in taken) == list(range(budget))
    assert states(search) == [TrialState.COMPLETE] * budget


# Giving up


def test_a_trial_given_up_waits_again_with_its_subset(address):
    search = made(address, SPACE.queue(2, seed=0))
    trial = search.claim("me")
    subset = subset_of(search, trial)
    search.optuna_study().enqueue_trial({})
    assert search.give_up(trial, "its worker was lost")
    failed, _, _, again = search.trials()
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs[REASON] == "its worker was lost"
    assert again.state == TrialState.WAITING
    assert again.user_attrs == {PLACE: 0, ATTEMPT: 2}
    assert SPACE.read(again.system_attrs["fixed_params"])[0] == subset


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_trial_given_up_before_anything_was_chosen_keeps_its_subset(address, count, frozen):
    search = made(address, SEARCH.queue(3, seed=0), space=SEARCH)
    trial = search.claim("me")
    given_up = search.trials()[0] if frozen else trial
    assert search.give_up(given_up, "interrupted", count)
    assert search.trials()[-1].system_attrs["fixed_params"] == SEARCH.parameters(PAPER_SUBSETS[0])


def test_what_a_sampler_has_chosen_is_tried_again(address):
    search = made(address, [{}], space=SEARCH)
    trial = search.claim("me")
    chosen = SEARCH.suggest(trial)
    search.give_up(trial, "its worker was lost")
    again = search.claim("me")
    assert again.number == 1
    assert SEARCH.suggest(again) == chosen


def test_attempts_come_to_an_end(address):
    search = made(address, SPACE.queue(1, seed=0))
    for attempt in range(1, MOST_ATTEMPTS + 1):
        trial = search.claim("me")
        assert trial.user_attrs[ATTEMPT] == attempt
        assert search.give_up(trial, f"lost {attempt}")
    assert search.claim("me") is None
    assert states(search) == [TrialState.FAIL] * 3
    (record,) = search.records()
    assert (record.number, record.state, record.reason) == (2, FAILED, "lost 3")
    # Nor does a leader that takes over begin again.
    search.fill(SPACE.queue(1, seed=0))
    assert search.claim("me") is None


def test_an_interruption_is_no_attempt(address):
    search = made(address, SPACE.queue(1, seed=0))
    for _ in range(2 * MOST_ATTEMPTS):
        trial = search.claim("me")
        assert trial.user_attrs[ATTEMPT] == 1
        assert search.give_up(trial, "interrupted", count=False)
    for attempt in range(1, MOST_ATTEMPTS + 1):
        assert search.give_up(search.claim("me"), "interrupted", count=False)
        trial = search.claim("me")
        assert trial.user_attrs[ATTEMPT] == attempt
        assert search.give_up(trial, "its worker was lost")
    assert search.claim("me") is None


@pytest.mark.parametrize("state", [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
def test_a_trial_that_ended_meanwhile_is_not_given_up(address, state):
    search = made(address, SPACE.queue(1, seed=0))
    claimed = search.claim("me")
    (running,) = search.trials(TrialState.RUNNING)
    shared(address).end(claimed, state, None if state == TrialState.FAIL else 0.5)
    assert not search.give_up(running, "its worker was lost")
    assert not search.give_up(claimed, "its worker was lost")
    assert states(search) == [state]
    assert search.records()[0].reason == ""


def test_a_trial_that_completes_while_it_is_given_up_is_not_tried_again(address, monkeypatch):
    search = made(address, SPACE.queue(1, seed=0))
    trial = search.claim("me")
    note = search.storage.set_trial_user_attr

    def note_and_complete(trial_id, key, value):
        note(trial_id, key, value)
        shared(address).end(trial, TrialState.COMPLETE, 0.5)

    monkeypatch.setattr(search.storage, "set_trial_user_attr", note_and_complete)
    assert not search.give_up(trial, "its worker was lost")
    assert states(search) == [TrialState.COMPLETE]
    (record,) = search.records()
    assert (record.state, record.reason) == (COMPLETE, "")


def test_lost_trials_are_given_up_and_others_are_not(address):
    search = made(address, SPACE.queue(4, seed=0))
    for owner in ("alive", "lost", "alive"):
        search.claim(owner)
    lost = search.give_up_lost(lambda trial: trial.user_attrs[OWNER] == "alive")
    assert [trial.number for trial in lost] == [1]
    running, waiting, failed = TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL
    assert states(search) == [running, failed, running, waiting, waiting]
    assert search.records()[-1].number == 4


def test_several_processes_give_up_each_lost_trial_once(address, crew):
    search = made(address, SPACE.queue(8, seed=0))
    for _ in range(8):
        search.claim("lost")
    given_up = [number for of_process in crew(give_up_all, address) for number in of_process]
    # Those queued again wait, which is not lost.
    assert sorted(given_up) == list(range(8))
    assert Counter(states(search)) == {TrialState.FAIL: 8, TrialState.WAITING: 8}
    assert places(search, TrialState.WAITING) == list(range(8))
    assert {record.subset for record in search.records()} == set(SPACE.subsets(0)[:8])


def test_a_trial_either_completes_or_is_tried_again(address, crew):
    search = made(address, SPACE.queue(10, seed=0))
    for _ in range(10):
        search.claim("slow")
    by_process = crew(end_or_give_up, address, 10)
    for number in range(10):
        succeeded = [of_process[number] for of_process in by_process]
        assert sum(succeeded) == 1
        given_up = succeeded[1] or succeeded[3]
        assert search.trials()[number].state == (TrialState.FAIL if given_up else TrialState.COMPLETE)
        again = [trial for trial in search.trials(TrialState.WAITING) if trial.user_attrs[PLACE] == number]
        assert len(again) == given_up


def test_the_trial_of_a_killed_process_is_tried_again(address, killed):
    search = made(address, SPACE.queue(2, seed=0))
    killed("search.claim('killed'); search.optuna_study()", address)
    (running,) = search.trials(TrialState.RUNNING)
    assert running.user_attrs[OWNER] == "killed"
    (lost,) = search.give_up_lost(lambda trial: False)
    assert lost.number == 0
    taken = [subset_of(search, search.claim("me")) for _ in range(2)]
    assert sorted(taken) == sorted(SPACE.subsets(0)[:2])


@pytest.mark.soak
def test_a_process_killed_while_it_holds_the_lock_of_a_journal_does_not_block_for_ever(tmp_path, killed):
    address = f"journal:{tmp_path}/hpt.journal"
    search = made(address, SPACE.queue(1, seed=0))
    killed("JournalFileOpenLock(sys.argv[1].removeprefix('journal:')).acquire()", address)
    assert (tmp_path / "hpt.journal.lock").exists()
    start = time.monotonic()
    assert search.claim("me").number == 0
    assert 25 < time.monotonic() - start < 60


# Databases that fail


def test_a_server_that_has_closed_its_connections_is_connected_again(postgresql, database):  # noqa: F811
    search = made(database, SPACE.queue(2, seed=0))
    first = search.claim("me")
    postgresql.execute(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    search.end(first, TrialState.COMPLETE, 0.5)
    assert search.claim("me").number == 1


def test_a_database_that_is_gone_is_told_in_one_line(postgresql):  # noqa: F811
    address = postgresql.new_database()
    search = made(address, SPACE.queue(1, seed=0))
    postgresql.execute(postgresql.address(), f"DROP DATABASE {address.split('/')[3].split('?')[0]} WITH (FORCE)")
    with pytest.raises(HptError) as caught, storage_errors(address):
        search.claim("me")
    assert str(caught.value).startswith("storage: postgresql://postgres@/tests_")
    assert "does not exist" in str(caught.value)
    assert "\n" not in str(caught.value)


# Records


def test_records_say_what_is_known_of_each_trial(address):
    search = made(address, [*SPACE.queue(5, seed=0), {}])
    complete, pruned, failed, running = (search.claim("me") for _ in range(4))
    for trial in (complete, pruned, failed, running):
        subset_of(search, trial)
    complete.set_user_attr(RUN, "a run")
    for step, score in ((16, 0.5), (4, 0.25), (64, 0.75)):
        complete.report(score, step)
    search.end(complete, TrialState.COMPLETE, 0.75)
    pruned.report(0.125, 4)
    search.end(pruned, TrialState.PRUNED, 0.125, "not among the best at step 4")
    search.end(failed, TrialState.FAIL, reason="no images")
    records = search.records()
    assert [record.number for record in records] == list(range(6))
    assert [record.state for record in records] == [COMPLETE, PRUNED, FAILED, RUNNING, WAITING, WAITING]
    assert [record.subset for record in records] == [*PAPER_SUBSETS, None]
    assert [record.reason for record in records] == ["", "not among the best at step 4", "no images", "", "", ""]
    assert [record.run_id for record in records] == ["a run", *[""] * 5]
    assert list(records[0].scores.items()) == [(4, 0.25), (16, 0.5), (64, 0.75)]
    assert (records[0].score, records[1].score) == (0.75, 0.125)
    assert all(record.strengths == Strengths() for record in records)


def test_of_work_that_was_retried_there_is_the_last_record(address):
    search = made(address, SPACE.queue(3, seed=0))
    first = search.claim("me")
    first.report(0.5, 4)
    search.give_up(first, "its worker was lost")
    assert [(record.number, record.state) for record in search.records()] == [(1, WAITING), (2, WAITING), (3, WAITING)]
    assert {record.subset for record in search.records()} == set(PAPER_SUBSETS[:3])


def test_trials_that_others_have_queued_are_records_of_their_own(address):
    search = made(address, SPACE.queue(1, seed=0))
    for _ in range(2):
        search.optuna_study().enqueue_trial(SPACE.parameters(("flip",)))
    assert [record.number for record in search.records()] == [0, 1, 2]
    for _ in range(3):
        search.give_up(search.claim("me"), "its worker was lost")
    assert [record.number for record in search.records()] == [3, 4, 5]
    assert [record.subset for record in search.records()] == [AUGMENTATIONS, ("flip",), ("flip",)]


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_none(address, score):
    search = made(address, SPACE.queue(1, seed=0))
    trial = search.claim("me")
    trial.report(0.5, 4)
    trial.report(score, 16)
    (record,) = search.records()
    assert record.scores == {4: 0.5}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_trial_whose_score_is_not_finite_has_failed(address, score):
    search = made(address, SEARCH.queue(2, seed=0), space=SEARCH)
    complete, pruned = search.claim("me"), search.claim("me")
    for trial in (complete, pruned):
        SEARCH.suggest(trial)
        trial.report(score, 4)
    search.end(complete, TrialState.COMPLETE, score)
    search.end(pruned, TrialState.PRUNED, score, "not among the best at step 4")
    assert [(record.state, record.scores) for record in search.records()] == [(FAILED, {}), (FAILED, {})]
    assert [record.reason for record in search.records()] == [f"its score is {score}"] * 2
    assert [trial.values for trial in shared(address).trials()] == [None, None]


@pytest.mark.parametrize("chosen", [0, 2, 5, 6])
def test_a_trial_that_is_just_choosing_is_a_record(address, chosen):
    search = made(address, [{}], space=SEARCH)
    trial = search.claim("me")
    for name in AUGMENTATIONS[:chosen]:
        trial.suggest_categorical(name, [False, True])
    if chosen > 5:
        trial.suggest_float("flip_p", 0.1, 0.5)
    (record,) = shared(address, space=SEARCH).records()
    nothing_on = chosen >= 5 and not any(trial.params.values())
    assert record.subset == (() if nothing_on else None)
    assert record.state == RUNNING


def test_strengths_are_those_of_the_trial(address):
    search = made(address, [{}], space=SEARCH)
    subset, strengths = SEARCH.suggest(search.claim("me"))
    (record,) = shared(address, space=SEARCH).records()
    assert (record.subset, record.strengths) == (subset, strengths)
    assert parse_strengths(format_strengths(record.strengths)) == strengths


def test_plain_optuna_reads_the_study(address):
    search = made(address, SEARCH.queue(2, seed=0), space=SEARCH)
    better, worse = search.claim("me"), search.claim("me")
    for trial, score in ((better, 0.75), (worse, 0.25)):
        SEARCH.suggest(trial)
        trial.report(score, 4)
    search.end(better, TrialState.COMPLETE, 0.75)
    search.end(worse, TrialState.PRUNED, 0.25, "not among the best at step 4")
    file = address.removeprefix("journal:")
    plain = JournalStorage(JournalFileBackend(file)) if file != address else address.replace("sql:", "sql+psycopg:")
    loaded = optuna.load_study(study_name="cats", storage=plain)
    assert [trial.state.name for trial in loaded.trials] == ["COMPLETE", "PRUNED"]
    assert loaded.best_trial.number == 0
    assert loaded.best_params == SEARCH.parameters(AUGMENTATIONS)
    assert [trial.value for trial in loaded.trials] == [0.75, 0.25]
    assert [trial.intermediate_values for trial in loaded.trials] == [{4: 0.75}, {4: 0.25}]
    assert set(loaded.trials_dataframe().columns) >= {"params_crop", "params_jitter", "value", "state"}


def test_halving_is_the_same_with_a_study_opened_anew_for_each_trial(address):
    made(address, SPACE.queue(6, seed=0))
    scores, reached = (0.5, 0.6, 0.4, 0.55, 0.5, 0.9), []
    while trial := shared(address, halving=HALVING).claim("me"):
        reached.append(halve(shared(address, halving=HALVING), trial, scores))
    # Of six three, and of those the best one.
    assert reached == [*((place, 2) for place in range(6)), (5, 4), (1, 4), (3, 4), (5, 8)]


def test_several_processes_halve_as_one_does(address, crew):
    search = made(address, SPACE.queue(16, seed=0), halving=HALVING)
    scores = [(place * 7) % 16 / 16 for place in range(16)]
    reached = []
    # Who finds nothing to do ends, and is started again while others have more.
    while done := [pair for of_process in crew(halve_all, address, scores) for pair in of_process]:
        reached += done
    best = sorted(range(16), key=scores.__getitem__, reverse=True)
    pairs = [(place, target) for many, target in ((16, 2), (8, 4), (4, 8)) for place in best[:many]]
    assert sorted(reached) == sorted(pairs)
    assert Counter(record.reached for record in search.records()) == {2: 8, 4: 4, 8: 4}


# Sampling


def run_search(address, count, seed=0, score=lambda subset, strengths: float(len(subset)), name="cats", maximise=True):
    """Work off a search in which each trial is done by a worker that opens the search anew; gives what was drawn."""
    storage = made(address, SEARCH.queue(count, seed), space=SEARCH, seed=seed, name=name, maximise=maximise).storage
    drawn = []
    for _ in range(count):
        search = SharedSearch(storage, name, SEARCH, NopPruner(), seed)
        trial = search.claim("me")
        chosen = SEARCH.suggest(trial)
        drawn.append(chosen)
        search.end(trial, TrialState.COMPLETE, score(*chosen))
    return drawn


def test_a_search_is_the_same_for_a_seed(tmp_path):
    address = f"journal:{tmp_path}/hpt.journal"
    first, again, other = (run_search(address, 16, seed, name=f"study {i}") for i, seed in enumerate((3, 3, 4)))
    assert first == again
    assert first[:5] == other[:5]
    assert first[5:] != other[5:]
    assert len({strengths for _, strengths in first}) >= 10


def test_a_search_is_the_same_in_any_storage(tmp_path, database):
    assert run_search(f"journal:{tmp_path}/hpt.journal", 14) == run_search(database, 14)


def test_the_sampler_sees_what_came_before(tmp_path):
    """After the first random trials."""
    address = f"journal:{tmp_path}/hpt.journal"

    def with_crops(subset, strengths):
        return float("crop" in subset)

    def without(subset, strengths):
        return -with_crops(subset, strengths)

    liked, disliked = run_search(address, 14, 0, with_crops, "liked"), run_search(address, 14, 0, without, "disliked")
    assert liked[:10] == disliked[:10]
    assert liked[10:] != disliked[10:]


@pytest.mark.parametrize("maximise", [True, False])
def test_the_sampler_seeks_what_is_better(tmp_path, maximise):
    """Crop without gray, which chance would give 5 times of 20, where that is rewarded, or where a loss says so."""
    sign = 1 if maximise else -1
    drawn = run_search(
        f"journal:{tmp_path}/hpt.journal",
        40,
        score=lambda subset, strengths: sign * float("crop" in subset and "gray" not in subset),
        maximise=maximise,
    )
    late = [subset for subset, _ in drawn[20:]]
    assert sum("crop" in subset and "gray" not in subset for subset in late) > 8


def test_parameters_are_drawn_together(address):
    run_search(address, 12)
    search = shared(address, space=SEARCH)
    search.fill(SEARCH.queue(13, seed=0))
    trial = search.claim("me")
    assert isinstance(trial.study.sampler, TPESampler)
    # In groups, so that strengths are among them which are not there in each trial.
    strengths = {key for keys in STRENGTHS.values() for key in keys}
    assert set(trial.relative_params) == {*AUGMENTATIONS, *strengths}
    subset_of(search, trial)
    assert all(trial.params[name] == trial.relative_params[name] for name in AUGMENTATIONS)


@pytest.mark.parametrize("seed", [0, 4294, 4295, 2**31, 2**40])
@pytest.mark.parametrize("space", [SPACE, SEARCH])
def test_any_seed_will_do(tmp_path, seed, space):
    search = made(f"journal:{tmp_path}/hpt.journal", [{}] * 3, space=space, seed=seed)
    drawn = [space.suggest(search.claim("me")) for _ in range(3)]
    assert len(set(drawn)) > 1


def test_the_sampler_gives_no_warnings(tmp_path, recwarn):
    run_search(f"journal:{tmp_path}/hpt.journal", 12)
    assert [str(warning.message) for warning in recwarn] == []

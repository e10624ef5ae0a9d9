"""Real searches whose workers, leaders, terminals and databases go away: what the study and its runs say afterwards."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from processes import wait_for
from tuning.postgresql import OPTIONS, find_programs, server_or_skip
from workplace import Workplace

from hpt_mlflow.tuning.storage import open_storage

ROOT = Path(__file__).resolve().parents[2]
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
# A trial is first judged after 10 steps, and takes seconds after that: time to kill it.
SEARCH = {
    "parent": "models:/hpt/1",
    "data": "builtin:digits",
    "study": "s",
    # Of its subsets, the paper has three.
    "augment": "crop,gray,blur",
    "objective": "knn",
    "batch-size": 32,
    "precision": "float32",
    "compile": "off",
    "steps": 2,
    "trials": 3,
    "trial-steps": 60,
    "first-rung": 10,
    "pruner": "none",
    "adapt-winner": "false",
}
# What a command may take to end after a signal, on a machine that does other things as well.
SECONDS_TO_END = 30


@pytest.fixture(scope="module")
def furnished(tmp_path_factory):
    """A store with a model in it."""
    folder = tmp_path_factory.mktemp("furnished")
    place = Workplace(folder, f"sqlite:///{folder}/mlflow.db")
    assert place.finish(place.pretrain(steps=1, milestones="100%")) == 0
    return place


@pytest.fixture
def search(furnished, tmp_path):
    """A place with that model, a study that is still to be made, and no process left at the end."""
    place = Search(tmp_path, furnished)
    yield place
    for pid in place.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Search:
    """Commands that search, and what has become of the study."""

    def __init__(self, folder, furnished):
        shutil.copy(furnished.folder / "mlflow.db", folder)
        shutil.copytree(furnished.folder / "cache", folder / "cache")
        self.folder = folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.here = Workplace(folder, self.uri)
        self.storage = f"journal:{folder}/s.journal"

    def place(self, name):
        """Another folder to start a command in, with the same servers and the same spool."""
        place = Workplace(self.folder / name, self.uri)
        place.folder.mkdir(exist_ok=True)
        return place

    def tune(self, place=None, **options):
        words = [word for name, value in self._options(options).items() for word in (f"--{name}", value)]
        return (place or self.here).start("hpt", "tune", *words, HPT_SPOOL=str(self.here.spool))

    def mlflow_run(self, place=None, **options):
        options = {name.replace("-", "_"): value for name, value in self._options(options).items()}
        words = ["-e", "tune", "--env-manager", "local"]
        words += [word for option in options.items() for word in ("-P", "{}={}".format(*option))]
        return (place or self.here).start("mlflow", "run", ROOT, *words, HPT_SPOOL=str(self.here.spool))

    def _options(self, options):
        return SEARCH | {"storage": self.storage} | {name.replace("_", "-"): v for name, v in options.items()}

    def study(self):
        """The study as Optuna's own functions open it; None before it is there."""
        with contextlib.suppress(KeyError):
            if self.storage.startswith("journal:"):
                storage = JournalStorage(JournalFileBackend(self.storage.removeprefix("journal:")))
            else:
                storage = open_storage(self.storage)
            return optuna.load_study(study_name="s", storage=storage)
        return None

    def trials(self, *states):
        study = self.study()
        return study.get_trials(states=states or None) if study else []

    def in_the_middle(self, process, done=0):
        """Wait until so many trials are done and one has been judged that goes on; gives that one."""

        def found():
            # The worker of one that goes on has nothing to write for a while, and holds no lock that would outlive it.
            running = [
                trial
                for trial in self.trials(TrialState.RUNNING)
                if trial.intermediate_values and trial.user_attrs["hpt.steps"] > max(trial.intermediate_values)
            ]
            locked = (self.folder / "s.journal.lock").exists()
            return len(self.trials(*DONE)) >= done and running and not locked and running[0]

        return wait_for(found, process, 300)

    def worker(self, process):
        """Wait until a command has started a worker; gives its number."""
        return wait_for(
            lambda: [pid for pid, words in self.processes().items() if b"hpt_mlflow.stages.search.trials" in words],
            process,
        )[0]

    def processes(self, place=None):
        """What runs of all that was started, or of that in one folder, with its command line."""
        found, start = {}, place.folder if place else self.folder
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"HPT_CACHE={start}/".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes()
        return found

    def runs(self, stage):
        return self.here.client.search_runs(["0"], f"tags.`hpt.stage` = '{stage}'")

    def run(self):
        """The one run around the study."""
        (run,) = self.runs("tune")
        return run

    def nothing_runs(self):
        """No process, no run, no trial."""
        wait_for(lambda: not self.processes())
        assert not self.trials(TrialState.RUNNING)
        assert not self.here.client.search_runs(["0"], "attributes.status = 'RUNNING'")

    def agrees(self):
        """Each trial that was taken has a run of its own in the same state; gives how many there are of each."""
        self.nothing_runs()
        nested = {int(run.data.tags["hpt.trial"]): run for run in self.runs("trial")}
        assert len(nested) == len(self.runs("trial"))
        states = Counter()
        for trial in self.trials():
            if trial.state == TrialState.WAITING:
                assert trial.number not in nested
                continue
            run = nested.pop(trial.number)
            assert run.info.run_id == trial.user_attrs["hpt.run_id"]
            assert run.data.tags["mlflow.parentRunId"] == self.run().info.run_id
            state = run.data.tags["hpt.trial_state"]
            allowed = {
                ("complete", "FINISHED", TrialState.COMPLETE),
                ("pruned", "KILLED", TrialState.PRUNED),
                ("interrupted", "KILLED", TrialState.FAIL),
                ("failed", "FAILED", TrialState.FAIL),
            }
            assert (state, run.info.status, trial.state) in allowed
            if trial.state == TrialState.FAIL:
                assert trial.user_attrs["hpt.reason"] == run.data.tags.get("hpt.reason", "interrupted")
            states[state] += 1
        assert not nested
        return states

    def is_done(self, places=3):
        """All places of the queue are done, each once up to a step; gives how the trials ended."""
        states = self.agrees()
        assert not self.trials(TrialState.WAITING)
        done = self.trials(*DONE)
        reached = [(trial.user_attrs["hpt.place"], max(trial.intermediate_values)) for trial in done]
        assert len(set(reached)) == len(reached)
        assert {place for place, _ in reached} == set(range(places))
        assert len({tuple(sorted(trial.params.items())) for trial in done}) == places
        assert states["complete"] + states["pruned"] == len(done)
        assert self.run().info.status == "FINISHED"
        return states


def errors(place):
    return [line for line in place.said().splitlines() if line.startswith("Error:")]


@pytest.mark.soak
def test_a_trial_whose_worker_was_killed_is_tried_again(search, fault):
    with fault("kill -9 of a worker of a study"):
        process = search.tune()
        trial = search.in_the_middle(process)
        os.kill(int(trial.user_attrs["hpt.owner"].rpartition(":")[2]), signal.SIGKILL)
        assert search.here.finish(process) == 0
        assert search.is_done() == {"complete": 3, "failed": 1}
        (failed,) = search.trials(TrialState.FAIL)
        assert failed.number == trial.number
        assert failed.user_attrs["hpt.reason"] == "its worker was lost"
        (again,) = [one for one in search.trials(*DONE) if one.user_attrs["hpt.attempt"] == 2]
        assert again.params == failed.params


@pytest.mark.soak
def test_workers_do_not_outlive_their_leader_and_the_same_command_goes_on(search, fault):
    with fault("kill -9 of the leader of a study"):
        process = search.tune(workers=2)
        search.in_the_middle(process, done=1)
        process.kill()
        process.wait()
        wait_for(lambda: not search.processes())
        assert "Traceback" not in search.here.said()
        run, before = search.run(), search.trials(*DONE)
        assert run.info.status == "KILLED"
        states = search.agrees()
        assert states["complete"] == len(before)
        # The second worker may be between two trials.
        interrupted = states["interrupted"]
        assert 1 <= interrupted <= 2
        assert {trial.user_attrs["hpt.attempt"] for trial in search.trials()} == {1}

        assert search.here.finish(search.tune(workers=2)) == 0
        assert search.is_done() == {"complete": 3, "interrupted": interrupted}
        assert search.run().info.run_id == run.info.run_id
        after = {trial.number: trial for trial in search.trials()}
        assert all(after[trial.number].datetime_complete == trial.datetime_complete for trial in before)


@pytest.mark.soak
def test_a_worker_that_is_starting_does_not_outlive_its_leader(search, fault):
    with fault("kill -9 of the leader of a study while its worker starts"):
        process = search.tune()
        search.worker(process)
        process.kill()
        process.wait()
        wait_for(lambda: not search.processes())
        assert "Traceback" not in search.here.said()
        assert not search.trials(*DONE)
        assert search.agrees().keys() <= {"interrupted"}


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_trials_and_the_same_command_goes_on(search, fault, number):
    with fault(f"{number.name} to a study"):
        process = search.tune()
        trial = search.in_the_middle(process, done=1)
        begun = time.monotonic()
        # A terminal sends it to all that it runs.
        os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        assert search.here.finish(process, SECONDS_TO_END) == 130
        print(f"ended {time.monotonic() - begun:.1f} s after {number.name}")
        run = search.run()
        assert run.info.status == "KILLED"
        assert search.agrees() == {"complete": 1, "interrupted": 1}
        (interrupted,) = search.trials(TrialState.FAIL)
        assert interrupted.number == trial.number
        assert interrupted.user_attrs["hpt.reason"] == "interrupted"
        again = search.trials()[-1]
        assert again.state == TrialState.WAITING
        assert (again.user_attrs["hpt.place"], again.user_attrs["hpt.attempt"]) == (trial.user_attrs["hpt.place"], 1)

        assert search.here.finish(search.tune()) == 0
        assert search.is_done() == {"complete": 3, "interrupted": 1}
        assert search.run().info.run_id == run.info.run_id


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_worker_starts(search, fault, number):
    with fault(f"{number.name} to a study while its worker starts"):
        process = search.tune()
        search.worker(process)
        os.killpg(process.pid, number)
        assert search.here.finish(process, SECONDS_TO_END) == 130
        assert search.run().info.status == "KILLED"
        assert search.agrees().keys() <= {"interrupted"}


@pytest.fixture(params=["journal", "postgresql"])
def shared(request, search):
    """A search whose study is in a file, or in a real database."""
    if request.param == "postgresql":
        search.storage = request.getfixturevalue("database").new_database()
    return search


@pytest.fixture
def database():
    """A PostgreSQL server that a test may end; the test is skipped where none can be started."""
    with server_or_skip() as server:
        yield server


@pytest.mark.soak
def test_two_commands_at_once_share_the_work(shared, fault):
    with fault("the same search twice at once"):
        places = [shared.place("one"), shared.place("other")]
        processes = [shared.tune(place, trials=6) for place in places]
        assert [place.finish(process, 300) for place, process in zip(places, processes, strict=True)] == [0, 0]
        assert shared.is_done(6) == {"complete": 6}
        joined = [place for place in places if "another process leads it" in place.told()]
        assert len(joined) == 1
        assert f"its run {shared.run().info.run_id} shows the result" in joined[0].told()
        # Both have worked: each process has taken trials of its own.
        assert len({trial.user_attrs["hpt.owner"] for trial in shared.trials()}) == 2


@pytest.mark.soak
@pytest.mark.parametrize(
    ("number", "start"), [(signal.SIGINT, "tune"), (signal.SIGTERM, "tune"), (signal.SIGTERM, "mlflow_run")]
)
def test_a_signal_to_one_that_works_along_leaves_the_leader_at_work(search, fault, number, start):
    with fault(f"{number.name} to {start.replace('_', ' ')} that works along in a study"):
        # The other one takes seconds to start.
        long = {"trials": 6, "trial_steps": 120}
        leading, joining = search.place("one"), search.place("other")
        leader = search.tune(leading, **long)
        search.in_the_middle(leader)
        other = getattr(search, start)(joining, **long)
        # Both have a run by then: one that is interrupted before has none.
        wait_for(lambda: sum("hpt.run_id" in t.user_attrs for t in search.trials(TrialState.RUNNING)) == 2, other)
        os.killpg(other.pid, number) if number == signal.SIGINT else other.send_signal(number)
        code = joining.finish(other, SECONDS_TO_END)
        assert code == (130 if start == "tune" else -number)
        wait_for(lambda: not search.processes(joining), seconds=SECONDS_TO_END)
        assert leading.finish(leader) == 0
        assert search.is_done(6) == {"complete": 6, "interrupted": 1}


def stop(database):
    """End a server as a machine that is switched off does."""
    pid = int(next((Path(database._folder) / "cluster").glob("postmaster.pid")).read_text().split()[0])
    os.kill(pid, signal.SIGQUIT)
    wait_for(lambda: not list(Path(database._folder).glob(".s.PGSQL.*")))


@contextlib.contextmanager
def started_again(database):
    folder = Path(database._folder)
    owner = folder.stat().st_uid
    as_owner = {"user": owner, "group": folder.stat().st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    options = [part for option in OPTIONS for part in ("-c", option)]
    words = [find_programs() / "postgres", "-D", folder / "cluster", "-k", folder, *options]
    with subprocess.Popen(words, **as_owner, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as again:

        def answers():
            with contextlib.suppress(Exception):
                database.execute(database.address(), "SELECT 1")
                return True

        try:
            wait_for(answers, again)
            yield
        finally:
            again.send_signal(signal.SIGQUIT)


@pytest.mark.soak
def test_a_database_that_goes_away_and_comes_back(search, fault, database):
    with fault("a PostgreSQL server goes away in a study"):
        search.storage = database.new_database()
        process = search.tune(workers=2)
        search.in_the_middle(process)
        run, before = search.run(), search.trials(*DONE)
        stop(database)
        assert search.here.finish(process) == 1
        (error,) = errors(search.here)
        assert error.startswith("Error: storage: postgresql://postgres@/tests_1?host=")
        assert search.run().info.status == "FAILED"
        wait_for(lambda: not search.processes())
        assert not search.here.client.search_runs(["0"], "attributes.status = 'RUNNING'")
        with started_again(database):
            assert search.here.finish(search.tune(workers=2)) == 0
            assert search.run().info.run_id == run.info.run_id
            states = search.is_done()
            assert states["complete"] == 3
            assert {trial.number for trial in before} <= {trial.number for trial in search.trials(*DONE)}


@pytest.mark.slow
def test_mlflow_run_searches_and_adapts(search):
    process = search.mlflow_run(
        trial_steps=4,
        first_rung=1,
        reduction=2,
        pruner="halving",
        objective="probe",
        adapt_winner="true",
        alias="best",
        judge="none",
    )
    assert search.here.finish(process, 300) == 0
    run, client = search.run(), search.here.client
    # Of three, one goes on from the first rung; as it is alone at the second as well, to the end.
    assert search.is_done() == {"pruned": 3, "complete": 1}
    assert [max(trial.intermediate_values) for trial in search.trials()] == [1, 1, 1, 4]
    version = client.get_model_version_by_alias("hpt", "best")
    assert run.data.tags["hpt.model"] == f"models:/hpt/{version.version}"
    assert version.tags["hpt.parent_model"] == "models:/hpt/1"
    assert run.data.tags["mlflow.project.entryPoint"] == "tune"
    assert "test/accuracy" in run.data.metrics
    assert {one.data.tags["mlflow.parentRunId"] for one in search.runs("adapt")} == {run.info.run_id}
    assert {one.data.tags["mlflow.parentRunId"] for one in search.runs("evaluate")} == {run.info.run_id}
    assert "trials.json" in {file.path for file in client.list_artifacts(run.info.run_id)}


@pytest.mark.soak
def test_nothing_outlives_mlflow_run_and_the_same_command_goes_on(search, fault):
    with fault("SIGTERM to mlflow run of a study"):
        process = search.mlflow_run()
        search.in_the_middle(process)
        process.send_signal(signal.SIGTERM)
        process.wait()
        wait_for(lambda: not search.processes())
        assert "Traceback" not in search.here.said().replace("\r", "\n").split("mlflow/projects")[0]
        run = search.run()
        assert run.info.status == "KILLED"
        assert search.agrees() == {"interrupted": 1}
        assert search.here.finish(search.mlflow_run()) == 0
        assert search.is_done() == {"complete": 3, "interrupted": 1}
        assert search.run().info.run_id == run.info.run_id


@pytest.mark.soak
def test_mlflow_run_works_along(search, fault):
    with fault("mlflow run works along in a study"):
        # The other one takes seconds to start.
        long = {"trials": 6, "trial_steps": 120}
        leading, joining = search.place("one"), search.place("other")
        leader = search.tune(leading, **long)
        search.in_the_middle(leader)
        other = search.mlflow_run(joining, **long, workers=2)
        assert leading.finish(leader, 300) == 0
        assert joining.finish(other, 300) == 0
        assert search.is_done(6) == {"complete": 6}
        assert len({trial.user_attrs["hpt.owner"] for trial in search.trials()}) > 1


@pytest.mark.soak
def test_a_study_whose_trials_all_fail_says_why(search, fault):
    with fault("all trials of a study fail"):
        process = search.tune(learning_rate=1e30, workers=2)
        assert search.here.finish(process) == 1
        (error,) = errors(search.here)
        assert "all trials failed" in error
        assert "loss" in error
        assert search.run().info.status == "FAILED"
        assert search.agrees() == {"failed": 3}
        assert len(search.trials()) == 3

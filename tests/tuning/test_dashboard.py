"""optuna-dashboard opens what `hpt tune` keeps."""

import json
import subprocess
import sys
import urllib.request
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from optuna.trial import TrialState
from processes import wait_for

from hpt_mlflow.augment.subset import AUGMENTATIONS
from hpt_mlflow.tuning.pruning import make_pruner
from hpt_mlflow.tuning.search import SharedSearch
from hpt_mlflow.tuning.space import Space
from hpt_mlflow.tuning.storage import dashboard_command, open_storage


@pytest.mark.slow
@pytest.mark.skipif(find_spec("optuna_dashboard") is None, reason="optuna-dashboard is not installed")
@pytest.mark.parametrize("address", ["journal:studies.journal", "sqlite:///studies.db"])
def test_the_dashboard_shows_subsets_scores_and_what_was_pruned(tmp_path, monkeypatch, unused_port, address):
    monkeypatch.chdir(tmp_path)
    space = Space(AUGMENTATIONS)
    search = SharedSearch(open_storage(address), "photos", space, make_pruner("halving", 4, 1, 2), 0)
    search.create({}, maximise=True)
    search.fill(space.queue(3, 0))
    for score, state in ((0.5, TrialState.COMPLETE), (0.25, TrialState.PRUNED)):
        trial = search.claim("me:1")
        space.suggest(trial)
        trial.report(score, 4)
        search.end(trial, state, score)

    command = dashboard_command(address).split()
    program = Path(sys.executable).parent / command[0]
    server = subprocess.Popen([program, *command[1:], "--port", str(unused_port)], stdout=subprocess.DEVNULL)
    try:
        shown = get(f"http://127.0.0.1:{unused_port}/api/studies", server)
        (summary,) = shown["study_summaries"]
        assert summary["study_name"] == "photos"
        trials = get(f"http://127.0.0.1:{unused_port}/api/studies/{summary['study_id']}", server)["trials"]
    finally:
        server.terminate()
        server.wait()
    assert [trial["state"] for trial in trials] == ["Complete", "Pruned", "Waiting"]
    assert [trial["values"] for trial in trials[:2]] == [[0.5], [0.25]]
    assert {param["name"] for param in trials[0]["params"]} == set(AUGMENTATIONS)


def get(address, server):
    def answer():
        with suppress(OSError), urllib.request.urlopen(address) as response:
            return json.loads(response.read())

    return wait_for(answer, server)

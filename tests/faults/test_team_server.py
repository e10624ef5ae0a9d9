"""PostgreSQL, S3 and a server behind proxies that break calls: nothing is lost, nothing is there twice.

Takes PostgreSQL (`apt-get install postgresql`), and `pip install boto3 moto[server] psycopg[binary]`.
"""

import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import mlflow
import pytest
from breaking_proxy import EXPIRED_KEYS, EXPIRED_LOGIN, breaking_proxy
from mlflow.entities import LoggedModelStatus
from processes import kill_group, wait_for
from safetensors.torch import load_file
from team import BUCKET, POSTGRES_BIN, free_port, is_there, object_store, postgres
from workplace import Workplace, equal

FAULTS = int(os.environ.get("HPT_FAULTS", "100"))
OPTIONS = {"steps": 200, "batch-size": 16, "checkpoint_every": 10}
RESUMED = r"resumes run \w+ at step \d+ of \d+(; (\d+))?"
KEYS = {"AWS_ACCESS_KEY_ID": "team", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


class Team:
    """A workplace behind breaking proxies, and what can be broken around it."""

    def __init__(self, folder, artifacts, stack):
        self.database, self.artifacts = stack.enter_context(postgres()), artifacts
        self.store = stack.enter_context(breaking_proxy(stack.enter_context(object_store(folder)), EXPIRED_KEYS, 1))
        self.port, self.restarts = free_port(), Counter()
        self.tracking = stack.enter_context(breaking_proxy(self.port, EXPIRED_LOGIN, 2))
        self.keys = KEYS | {"MLFLOW_S3_ENDPOINT_URL": self.store.uri}
        self.workplace = Workplace(folder, self.tracking.uri)
        (folder / "server").mkdir()
        self.server_place = Workplace(folder / "server", self.database.uri)
        self.start_server()
        stack.callback(lambda: kill_group(self.server, signal.SIGKILL))

    def start_server(self):
        words = ["mlflow", "server", "--host", "127.0.0.1", "--port", self.port, "--workers", "1"]
        words += ["--backend-store-uri", self.database.uri]
        root = f"s3://{BUCKET}/mlflow"
        words += ["--artifacts-destination", root] if self.artifacts == "proxied" else ["--no-serve-artifacts"]
        words += [] if self.artifacts == "proxied" else ["--default-artifact-root", root]
        self.server = self.server_place.start(*words, **self.keys)
        wait_for(lambda: is_there(f"http://127.0.0.1:{self.port}/health"), self.server)

    def restart_server(self):
        kill_group(self.server, signal.SIGKILL)
        self.server.wait()
        time.sleep(2)
        self.start_server()
        self.restarts["server killed"] += 1

    def restart_database(self):
        self.database.restart()
        self.restarts["PostgreSQL restarted"] += 1

    def breaks(self, active):
        self.tracking.active = self.store.active = active

    @property
    def faults(self):
        broken = Counter({f"S3 {kind}": number for kind, number in self.store.done.items()})
        return broken + Counter({f"server {kind}": count for kind, count in self.tracking.done.items()}) + self.restarts

    def pretrain(self, **options):
        environment = {**self.keys, "HPT_PATIENCE_SECONDS": "60", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
        return self.workplace.pretrain(environment, **OPTIONS, **options)

    def deliver(self, process):
        """Let a training end, and send what it could not; gives whether it could."""
        code = self.workplace.finish(process)
        self.breaks(False)
        if code:
            sent = self.workplace.hpt("sync", **self.keys)
            assert sent.returncode == 0, sent.stdout + sent.stderr + self.workplace.said()
        assert not list(self.workplace.spool.glob("*/*.json"))
        return not code


@pytest.fixture
def team(tmp_path, request, monkeypatch):
    for package in ("boto3", "moto", "psycopg"):
        pytest.importorskip(package)
    if not (POSTGRES_BIN / "pg_ctl").exists():
        pytest.skip("PostgreSQL is not installed")
    with ExitStack() as stack:
        opened = Team(tmp_path, request.param, stack)
        for name, value in (opened.keys | {"MLFLOW_TRACKING_URI": opened.tracking.uri}).items():
            monkeypatch.setenv(name, value)
        mlflow.set_tracking_uri(None)
        yield opened


@pytest.mark.soak
@pytest.mark.parametrize("team", ["direct", "proxied"], indirect=True)
def test_broken_calls_restarts_and_expired_logins_lose_and_double_nothing(team, fault):
    workplace, choice = team.workplace, random.Random(3)
    assert workplace.finish(team.pretrain()) == 0
    (whole,) = workplace.runs()
    rounds = sent_late = steps_again = 0
    while team.faults.total() < FAULTS:
        rounds += 1
        training = team.pretrain()
        # The spools of those before are empty.
        wait_for(workplace.spooled_step, training)
        team.breaks(True)
        time.sleep(choice.uniform(2, 8))
        team.restart_database()
        training.send_signal(signal.SIGTERM)
        training.wait()
        team.breaks(False)
        training = team.pretrain()
        resumed = wait_for(lambda: re.search(RESUMED, workplace.said()), training)
        steps_again += int(resumed[2] or 0)
        team.breaks(True)
        for restart in (team.restart_database, team.restart_server, team.restart_database):
            time.sleep(choice.uniform(1, 4))
            restart()
        sent_late += not team.deliver(training)

    runs = workplace.runs()
    assert len(runs) == rounds + 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    lost = sum(len(set(workplace.loss_curve(whole)) - set(workplace.loss_curve(run))) for run in runs)
    for name, number in team.faults.items():
        for _ in range(number):
            with fault(f"{team.artifacts} artifacts: {name}"):
                pass
    print(
        rounds, "trainings,", sent_late, "delivered by hpt sync,", steps_again, "steps repeated,", lost, "points lost"
    )
    for run in runs:
        assert workplace.loss_curve(run) == workplace.loss_curve(whole)
        for name in run.data.metrics:
            steps = [metric.step for metric in workplace.client.get_metric_history(run.info.run_id, name)]
            assert len(steps) == len(set(steps)), name
        assert {output.step for output in run.outputs.model_outputs} == {100, 200}
        assert len(run.outputs.model_outputs) == 2
    models = workplace.client.search_logged_models(["0"], max_results=1000)
    assert [model.status for model in models] == [LoggedModelStatus.READY] * 2 * len(runs)
    versions = workplace.client.search_model_versions("name='hpt'")
    assert {int(version.version) for version in versions} == set(range(1, len(runs) + 1))
    assert len({version.source for version in versions}) == len(versions)
    first, *others = [weights(version) for version in versions]
    assert all(equal(first, other) for other in others)


def weights(version):
    folder = Path(mlflow.artifacts.download_artifacts(version.source))
    return load_file(next(folder.rglob("*.safetensors")))

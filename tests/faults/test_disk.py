"""A disk that fills up costs a warning, not the training."""

import shutil

import pytest
from processes import wait_for
from workplace import equal

pytestmark = pytest.mark.slow


def fill(disk):
    """Use up all room; gives the file to remove."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as stream:
        try:
            while stream.write(b"\0" * 65536):
                pass
        except OSError:
            return ballast


def test_training_goes_on_while_the_disk_of_the_spool_is_full(workplace, small_disk, fault):
    workplace.spool.symlink_to(small_disk)
    with fault("disk of the spool full for a while") as count:
        training = workplace.pretrain(steps=120, checkpoint_every=10, milestones="100%")
        wait_for(lambda: workplace.spooled_step() >= 4, training)
        ballast = fill(small_disk)
        wait_for(lambda: "cannot write the training state" in workplace.said(), training)
        ballast.unlink()
        assert workplace.finish(training) == 0
        (run,) = workplace.runs()
        count.lost = 120 - len(workplace.loss_curve(run))
    assert workplace.said().count("cannot write the training state") == 1
    assert [step for step, _ in workplace.loss_curve(run)] == list(range(1, 121))
    assert run.info.status == "FINISHED"


def test_a_result_that_cannot_be_kept_is_made_again_from_the_last_training_state(workplace, small_disk, fault):
    assert workplace.finish(workplace.pretrain(steps=60, checkpoint_every=10, milestones="100%")) == 0
    shutil.rmtree(workplace.spool)
    workplace.spool.symlink_to(small_disk)
    with fault("disk of the spool full at the end"):
        options = {"steps": 60, "checkpoint_every": 10, "milestones": "100%"}
        training = workplace.pretrain(resume="never", **options)
        wait_for(lambda: workplace.spooled_step() >= 15, training)
        ballast = fill(small_disk)
        assert workplace.finish(training) == 1
        error = [line for line in workplace.said().splitlines() if line.startswith("Error: ")][-1]
        assert "free disk space, and rerun the command" in error
        ballast.unlink()
        assert workplace.finish(workplace.pretrain(**options)) == 0
        assert "resumes run" in workplace.said()
    assert {run.info.status for run in workplace.runs()} == {"FINISHED"}
    assert equal(workplace.weights(1), workplace.weights(2))


def test_artifacts_that_the_store_refuses_are_sent_when_there_is_room(workplace, small_disk, fault):
    client = workplace.client
    experiment_id = client.create_experiment("full", artifact_location=str(small_disk / "artifacts"))
    ballast = fill(small_disk)
    with fault("disk of the artifacts full") as count:
        training = workplace.pretrain(
            steps=40, checkpoint_every=10, milestones="100%", environment={"MLFLOW_EXPERIMENT_NAME": "full"}
        )
        assert workplace.finish(training) == 1
        assert workplace.said().count("MLflow refuses the training state") == 1
        ballast.unlink()
        sent = workplace.hpt("sync")
        assert sent.returncode == 0, sent.stdout + sent.stderr
        (run,) = client.search_runs([experiment_id])
        count.lost = 40 - len(workplace.loss_curve(run))
    assert run.info.status == "FINISHED"
    assert run.data.tags["hpt.model"] == "models:/hpt/1"
    assert workplace.weights(1)

"""Nothing that comes from a registry or from a run's artifacts is executed."""

import pickle
import re
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from processes import wait_for

from hpt_mlflow.cli import hpt


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def register_folder(workplace, files):
    """Register a model version that is made of these files."""
    # MLflow looks up the model of a new version in its global store.
    mlflow.set_tracking_uri(workplace.tracking_uri)
    client = workplace.client
    run = client.create_run("0")
    model = client.create_logged_model("0", "step-1", run.info.run_id)
    folder = workplace.folder / "model"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model("hpt")
    client.create_model_version("hpt", f"models:/{model.model_id}", run.info.run_id, model_id=model.model_id)


def test_a_pickle_as_parent_is_refused_in_one_line_and_not_executed(workplace, store, fault):
    evidence = workplace.folder / "executed"
    payload = pickle.dumps(Payload(evidence))
    mlmodel = b"flavors:\n  python_function:\n    loader_module: evil\n    python_model: python_model.pkl\n"
    card = b'{"format": "hpt_mlflow.backbone/1", "arch": "shufflenet_v2_x0_5", "image_size": 16, "small_stem": false,'
    card += b'"feature_size": 1024, "mean": [0,0,0], "std": [1,1,1], "chain": [], "step": 1}'
    for name, files in {
        "a pickled model as parent": {"MLmodel": mlmodel, "python_model.pkl": payload, "evil.py": b"import nothing"},
        "a pickle in place of the weights": {"backbone.json": card, "backbone.safetensors": payload},
    }.items():
        with fault(name):
            for registered in workplace.client.search_registered_models():
                workplace.client.delete_registered_model(registered.name)
            register_folder(workplace, files)
            done = CliRunner().invoke(hpt, ["adapt", "--data", "builtin:digits", "--steps", "2"])
            assert done.exit_code == 1
            assert "Traceback" not in done.output
            assert [line for line in done.output.splitlines() if line.startswith("Error: parent: ")]
            assert not evidence.exists()


@pytest.mark.slow
def test_a_pickle_in_place_of_the_newest_training_state_is_passed_over(workplace, fault):
    evidence = workplace.folder / "executed"
    options = {"steps": 60, "checkpoint_every": 10}
    with fault("newest training state damaged or replaced") as count:
        training = workplace.pretrain(**options)
        wait_for(lambda: workplace.spooled_step() >= 31, training)
        training.kill()
        training.wait()
        wait_for(lambda: not list(workplace.spool.glob("*/*")))
        (run,) = workplace.runs()
        states = Path(run.info.artifact_uri.removeprefix("file://")) / "training_state"
        newest = max(states.iterdir(), key=lambda folder: (folder / "training_state.json").stat().st_mtime_ns)
        (newest / "training_state.safetensors").write_bytes(pickle.dumps(Payload(evidence)))
        training = workplace.pretrain(**options)
        assert workplace.finish(training) == 0
        assert "is damaged" in workplace.said()
        (again,) = re.findall(r"at step [12]0 of 60; (\d+) steps are repeated", workplace.said())
        count.steps_again = int(again)
    assert not evidence.exists()
    (run,) = workplace.runs()
    assert run.info.status == "FINISHED"
    assert [step for step, _ in workplace.loss_curve(run)] == list(range(1, 61))

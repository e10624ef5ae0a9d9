import shutil

import mlflow
import pytest
from recorded import evaluation, stage


@pytest.fixture(scope="module")
def three_models(empty_database, tmp_path_factory):
    """A store with three versions of hpt, each with an evaluation and a classifier: 0.60, 0.70 and 0.65."""
    folder = tmp_path_factory.mktemp("three")
    shutil.copy(empty_database, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        made = [stage(folder, "pretrain", dataset) for dataset in ("cats", "dogs", "birds")]
        for seed, (model, accuracy) in enumerate(zip(made, (0.6, 0.7, 0.65), strict=True)):
            evaluation(folder, model, accuracy, seed=seed, classifier="hpt-classifier")
        mlflow.set_tracking_uri(None)
    return folder / "mlflow.db", made


@pytest.fixture
def models(three_models, store, tmp_path):
    """The addresses of the three versions, in a copy of their store."""
    file, made = three_models
    shutil.copy(file, tmp_path / "mlflow.db")
    return made

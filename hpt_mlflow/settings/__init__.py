"""The settings of each stage: every option with its type, default, range, unit and meaning.

The command line, MLproject, the Python API and the reference in docs/ are made from these classes. A setting of None
takes its value from `preset` or, as its help says, from the parent or the machine.
"""

from hpt_mlflow.plugins import load_plugins

# First, since the options of methods that plugins add become settings.
load_plugins("hpt_mlflow.plugins")

# ruff: noqa: E402
from hpt_mlflow.settings.adapt import AdaptSettings
from hpt_mlflow.settings.common import DEFAULT_MODEL_NAME, PRESETS
from hpt_mlflow.settings.embed import EmbedSettings
from hpt_mlflow.settings.evaluate import EvaluateSettings
from hpt_mlflow.settings.inspect import InspectSettings
from hpt_mlflow.settings.main import MainSettings
from hpt_mlflow.settings.pretrain import PretrainSettings
from hpt_mlflow.settings.study import StudySettings
from hpt_mlflow.settings.training import AUTO, PRECISIONS, TrainingSettings
from hpt_mlflow.settings.tune import TuneSettings

__all__ = [
    "AUTO",
    "DEFAULT_MODEL_NAME",
    "PRECISIONS",
    "PRESETS",
    "AdaptSettings",
    "EmbedSettings",
    "EvaluateSettings",
    "InspectSettings",
    "MainSettings",
    "PretrainSettings",
    "StudySettings",
    "TrainingSettings",
    "TuneSettings",
]

"""The stages of the project, one per file. To add one: its file, its settings, and a line in the table below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpt_mlflow.options import Settings
from hpt_mlflow.plugins import add_to, load_place, load_plugins
from hpt_mlflow.settings import (
    AdaptSettings,
    EmbedSettings,
    EvaluateSettings,
    InspectSettings,
    MainSettings,
    PretrainSettings,
    StudySettings,
    TuneSettings,
)

if TYPE_CHECKING:
    from hpt_mlflow.stages.result import StageResult


@dataclass(frozen=True)
class Stage:
    """A stage, known without importing torch or MLflow, which take seconds.

    Attributes:
        name: of its command, and of its function in `hpt_mlflow`.
        settings: its options.
        place: `module:function`.
    """

    name: str
    settings: type[Settings]
    place: str

    @property
    def function(self) -> Callable[..., StageResult | None]:
        """What does the work; takes the settings as keywords. None means that there was only something to print."""
        function: Callable[..., StageResult | None] = load_place(self.place)
        return function

    def __call__(self, **settings: Any) -> StageResult | None:
        """Run the stage."""
        return self.function(**settings)


STAGES: dict[str, Stage] = {}


def register_stage(name: str, settings: type[Settings], place: str) -> None:
    """Add a stage to the commands and to the Python API. Other packages call this from a plugin (see `plugins`).

    Args:
        name: of its command.
        settings: a frozen dataclass of `hpt_mlflow.options.option`s.
        place: `module:function` of a function that `hpt_mlflow.stages.stage` decorates.

    Raises:
        ValueError: another stage has this name.
    """
    add_to(STAGES, "stage", name, Stage(name, settings, place))


register_stage("pretrain", PretrainSettings, "hpt_mlflow.stages.pretrain:pretrain")
register_stage("adapt", AdaptSettings, "hpt_mlflow.stages.adapt:adapt")
register_stage("tune", TuneSettings, "hpt_mlflow.stages.tune:tune")
register_stage("evaluate", EvaluateSettings, "hpt_mlflow.stages.evaluate:evaluate")
register_stage("embed", EmbedSettings, "hpt_mlflow.stages.embed:embed")
register_stage("inspect", InspectSettings, "hpt_mlflow.stages.inspect:inspect")
register_stage("main", MainSettings, "hpt_mlflow.stages.main:main")
register_stage("study", StudySettings, "hpt_mlflow.stages.study:study")
load_plugins("hpt_mlflow.stages")

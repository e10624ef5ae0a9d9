"""What the run of a search shows, during the search and at its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from hpt_mlflow.evaluation.objectives import OBJECTIVES, maximises
from hpt_mlflow.report.tuning_card import Winner, tuning_card
from hpt_mlflow.report.tuning_figures import (
    main_effects_figure,
    rung_curves,
    trials_table,
)
from hpt_mlflow.settings import TuneSettings
from hpt_mlflow.stages.search.setup import TrialSetup
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.runs.stage_run import StageRun
from hpt_mlflow.tuning.effects import common_step, main_effects
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, TrialRecord, best_trial
from hpt_mlflow.tuning.search import SharedSearch
from hpt_mlflow.tuning.storage import dashboard_command

# The shortest time between two drawings of the figures during a search.
REDRAW_SECONDS = 60.0
RULES = {"halving": "one in {} continues", "hyperband": "Hyperband, one in {} continues", "none": ""}


@dataclass
class SearchReport:
    """The metrics, the figures, the table and the description of a search's run.

    Attributes:
        planned: trials in the queue.
    """

    run: StageRun
    settings: TuneSettings
    setup: TrialSetup
    search: SharedSearch
    planned: int
    _drawn: float = field(default=0.0, init=False)

    @property
    def maximise(self) -> bool:
        """Whether a high score is good."""
        return maximises(self.setup.objective)

    def update(self) -> list[TrialRecord]:
        """Log the progress of the search, and return the records of its trials."""
        trials = self.search.records()
        ended = [trial for trial in trials if trial.state in (COMPLETE, PRUNED, FAILED)]
        best = best_trial(ended, self.maximise)
        if ended:
            count = Counter(trial.state for trial in ended)
            metrics: dict[str, float] = {f"tune/{state}": count[state] for state in (COMPLETE, PRUNED, FAILED)}
            metrics["tune/steps"] = self.search.spent_steps()
            self.run.metrics(metrics | ({"tune/best_score": best.score} if best else {}), len(ended))
        if best:
            self.run.tags({tag.AUGMENT: best.name})
        if time.monotonic() - self._drawn > REDRAW_SECONDS:
            self.draw(trials)
        return trials

    def draw(self, trials: Sequence[TrialRecord]) -> None:
        """Draw the figures, write the table and the description."""
        run, space, label = self.run, self.setup.space, OBJECTIVES[self.setup.objective].title
        step = common_step(trials)
        effects = main_effects(trials, step, space.augmentations)
        curves = rung_curves(trials, space.paper_subsets[0], best_trial(trials, self.maximise), label)
        run.picture(curves, "rung_curves.png")
        run.picture(main_effects_figure(effects, step, label), "main_effects.png")
        run.table(trials_table(trials, self.maximise), "trials.json")
        self.describe(trials)
        self._drawn = time.monotonic()

    def describe(self, trials: Sequence[TrialRecord], winner: Winner | None = None) -> None:
        """Write the description."""
        setup, settings = self.setup, self.settings
        self.run.describe(
            tuning_card(
                data=setup.dataset.uri,
                seen=len(setup.split.seen),
                chain=setup.chain,
                parent=setup.start.parent,
                objective=OBJECTIVES[setup.objective].title,
                maximise=self.maximise,
                planned=self.planned,
                rungs=setup.rungs,
                pruning=RULES[settings.pruner].format(settings.reduction),
                dashboard=dashboard_command(settings.storage),
                augmentations=setup.space.augmentations,
                trials=trials,
                spent=self.search.spent_steps(),
                winner=winner,
            )
        )

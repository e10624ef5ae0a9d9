"""What the run around a search shows, while it goes on and at its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hpt_mlflow.evaluation.objectives import maximises
from hpt_mlflow.report.tuning_card import tuning_card
from hpt_mlflow.report.tuning_figures import (
    interactions_figure,
    main_effects_figure,
    optimisation_history,
    rung_curves,
    trials_table,
)
from hpt_mlflow.settings import TuneSettings
from hpt_mlflow.stages.search.setup import TrialSetup
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.runs.stage_run import StageRun
from hpt_mlflow.tuning.effects import common_step, interactions, main_effects
from hpt_mlflow.tuning.records import COMPLETE, FAILED, PRUNED, TrialRecord, best_trial
from hpt_mlflow.tuning.search import SharedSearch
from hpt_mlflow.tuning.storage import dashboard_command

# Figures are drawn anew at most so often while the study goes on.
REDRAW_SECONDS = 60.0
LABELS = {
    "probe": "linear probe on validation",
    "knn": "20-NN on validation",
    "rotation": "accuracy of predicting rotations",
    "infonce": "InfoNCE loss",
}
RULES = {"halving": "one in {} goes on", "hyperband": "Hyperband, one in {} goes on", "none": ""}


@dataclass
class TuneReport:
    """The figures, the table and the description of a study's run."""

    run: StageRun
    settings: TuneSettings
    setup: TrialSetup
    study: SharedSearch
    planned: int
    _drawn: float = field(default=0.0, init=False)

    @property
    def maximise(self) -> bool:
        """Whether a high score is a good one."""
        return maximises(self.setup.objective)

    def update(self) -> list[TrialRecord]:
        """Log how far the study is; gives what is known of its trials."""
        trials = self.study.records()
        ended = [trial for trial in trials if trial.state in (COMPLETE, PRUNED, FAILED)]
        best = best_trial(ended, self.maximise)
        if ended:
            count = Counter(trial.state for trial in ended)
            figures: dict[str, float] = {f"tune/{state}": count[state] for state in (COMPLETE, PRUNED, FAILED)}
            figures["tune/steps"] = self.study.spent_steps()
            self.run.metrics(figures | ({"tune/best_score": best.score} if best else {}), len(ended))
        if best:
            self.run.tags({tag.AUGMENT: best.name})
        if time.monotonic() - self._drawn > REDRAW_SECONDS:
            self.draw(trials)
        return trials

    def draw(self, trials: Sequence[TrialRecord]) -> None:
        """Draw the figures, write the table and the description."""
        run, space, label = self.run, self.setup.space, LABELS[self.setup.objective]
        step = common_step(trials)
        best = best_trial(trials, self.maximise)
        run.picture(optimisation_history(trials, self.maximise, label), "optimisation_history.png")
        run.picture(rung_curves(trials, space.paper_subsets[0], best, label), "rung_curves.png")
        effects = main_effects(trials, step, space.augmentations)
        pairs = interactions(trials, step, space.augmentations)
        run.picture(main_effects_figure(effects, step, label), "main_effects.png")
        run.picture(interactions_figure(pairs, step, label), "interactions.png")
        run.table(trials_table(trials, self.maximise), "trials.json")
        self.describe(trials)
        self._drawn = time.monotonic()

    def describe(self, trials: Sequence[TrialRecord], **outcome: Any) -> None:
        """Write the description.

        Args:
            outcome: what came of the winner; see `report.tuning_card.tuning_card`.
        """
        setup, settings = self.setup, self.settings
        step = common_step(trials)
        self.run.describe(
            tuning_card(
                data=setup.dataset.uri,
                seen=len(setup.split.seen),
                chain=(*setup.start.chain, setup.dataset.name),
                parent=setup.start.parent,
                objective=LABELS[setup.objective],
                maximise=self.maximise,
                planned=self.planned,
                steps=setup.rungs[-1],
                rungs=setup.rungs[:-1],
                pruning=RULES[settings.pruner].format(settings.reduction),
                dashboard=dashboard_command(settings.storage),
                trials=trials,
                spent=self.study.spent_steps(),
                subsets=2 ** len(setup.space.augmentations),
                effects=main_effects(trials, step, setup.space.augmentations),
                effects_step=step,
                **outcome,
            )
        )

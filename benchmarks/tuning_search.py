"""What a search finds, and at what cost, beside training all subsets in full; and what each objective is worth.

  python benchmarks/tuning_search.py scores.jsonl

Reads what benchmarks/tuning_scores.py has recorded. A trial's scores do not depend on other trials, so the search is
replayed on them: the study, its queue and Optuna's pruner are those of `hpt tune`, only the training is looked up.
Prints Markdown for docs/tuning.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from hpt_mlflow.augment.subset import AUGMENTATIONS
from hpt_mlflow.evaluation.objectives import maximises
from hpt_mlflow.tuning.pruning import PRUNERS, make_pruner, rungs
from hpt_mlflow.tuning.records import best_trial
from hpt_mlflow.tuning.space import Space
from hpt_mlflow.tuning.study import SharedStudy

Scores = dict[str, dict]


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("--orders", default=20, show_default=True, help="Orders of the queue to replay for each seed.")
def main(file: Path, orders: int) -> None:
    """Print both tables."""
    recorded: dict[tuple[str, int], Scores] = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        recorded.setdefault((entry["data"], entry["seed"]), {})[entry["subset"]] = entry
    whole = {key: scores for key, scores in recorded.items() if len(scores) == 2 ** len(AUGMENTATIONS)}
    for data in sorted({data for data, _ in whole}):
        of_data = {seed: scores for (d, seed), scores in whole.items() if d == data}
        print("\n".join([*_objectives(data, of_data), "", *_searches(data, of_data, orders), ""]))


def _objectives(data: str, by_seed: dict[int, Scores]) -> list[str]:
    """Spearman's correlation of each objective with the probe on validation and on test, over the 32 subsets."""
    lines = [
        f"### {data}: how each objective ranks the 32 subsets",
        "",
        f"Spearman's correlation, mean and range over {len(by_seed)} seeds; the last column is the test accuracy of",
        "the objective's own choice, less that of the probe's.",
        "",
        "| objective | with the probe on validation | with the probe on test | of its choice, points |",
        "|---|---|---|---|",
    ]
    for objective in ("probe", "knn", "rotation", "infonce"):
        sign = 1 if maximises(objective) else -1
        with_probe, with_test, chosen = [], [], []
        for scores in by_seed.values():
            own = sign * np.array([_last(entry[objective]) for entry in scores.values()])
            probe = np.array([_last(entry["probe"]) for entry in scores.values()])
            test = np.array([entry["test"] for entry in scores.values()])
            with_probe.append(spearmanr(own, probe).statistic)
            with_test.append(spearmanr(own, test).statistic)
            chosen.append(100 * (test[own.argmax()] - test[probe.argmax()]))
        lines.append(f"| {objective} | {_range(with_probe)} | {_range(with_test)} | {_range(chosen, '.1f')} |")
    return lines


def _searches(data: str, by_seed: dict[int, Scores], orders: int) -> list[str]:
    """Cost and regret of searches by the probe."""
    length = int(next(iter(next(iter(by_seed.values())).values()))["steps"])
    spread = [
        100
        * (max(_last(entry["probe"]) for entry in scores.values()) - _last(scores[",".join(AUGMENTATIONS)]["probe"]))
        for scores in by_seed.values()
    ]
    lines = [
        f"### {data}: what a search finds",
        "",
        f"Trials of {length} steps, {len(by_seed)} seeds, {orders} orders of the queue each. Regret: points of the",
        "probe on validation by which the best of all 32 subsets, each trained in full, is better than what the",
        "search takes; and the same of their test accuracy. The paper's baseline subset itself has a regret of",
        f"{_range(spread, '.1f')} points.",
        "",
        "| pruner | first rung | reduction | steps, of all | regret, validation | regret, test | within 1 point |",
        "|---|---|---|---|---|---|---|",
    ]
    for pruner, first, reduction in _ways(length):
        shares, regrets, on_test = [], [], []
        for scores in by_seed.values():
            best = max(scores.values(), key=lambda entry: _last(entry["probe"]))
            for order in range(orders):
                subset, steps = _replay(scores, pruner, length, first, reduction, order)
                shares.append(steps / (length * len(scores)))
                regrets.append(100 * (_last(best["probe"]) - _last(scores[subset]["probe"])))
                on_test.append(100 * (best["test"] - scores[subset]["test"]))
        within = np.mean(np.array(regrets) <= 1)
        spent = f"{np.mean(shares):.3f} (to {max(shares):.3f})"
        lost = f"{np.mean(regrets):.2f} (to {max(regrets):.2f})"
        cells = (pruner, first, reduction, spent, lost, f"{np.mean(on_test):+.2f}", f"{within:.0%}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def _ways(length: int) -> Iterator[tuple[str, int, int]]:
    for pruner in PRUNERS[:-1]:
        for share in (16, 4):
            yield pruner, length // share, 4


def _replay(scores: Scores, pruner: str, length: int, first: int, reduction: int, order: int) -> tuple[str, int]:
    """The subset that a search takes, and the steps that it has spent."""
    space = Space(AUGMENTATIONS)
    study = SharedStudy(InMemoryStorage(), "replay", space, make_pruner(pruner, length, first, reduction), order)
    study.create({}, maximise=True)
    study.fill(space.queue(None, order))
    while trial := study.claim("replay:1"):
        subset, _ = space.suggest(trial)
        of_trial = scores[",".join(subset) or "none"]["probe"]
        for step in rungs(length, first, reduction):
            study.reserve(trial, step)
            trial.report(of_trial[str(step)], step)
            pruned = step < length and trial.should_prune()
            if pruned:
                break
        study.end(trial, TrialState.PRUNED if pruned else TrialState.COMPLETE, of_trial[str(step)])
    found = best_trial(study.records(), maximise=True)
    assert found is not None
    return found.name, study.spent_steps()


def _last(by_step: dict[str, float]) -> float:
    return by_step[max(by_step, key=int)]


def _range(values: list[float], form: str = ".2f") -> str:
    return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    main()

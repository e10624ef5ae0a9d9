"""What a search finds, and at what cost, beside training all subsets in full; and what each objective is worth.

  python benchmarks/tuning_search.py benchmarks/recorded/tuning_h100.jsonl

Reads what benchmarks/tuning_scores.py has recorded. A trial's scores do not depend on other trials, so the search is
replayed on them: the search, its queue and who goes on are those of `hpt tune`, only the training is looked up. Prints
Markdown for docs/tuning.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import click
import numpy as np
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState
from scipy.stats import spearmanr  # type: ignore[import-untyped]

from hpt_mlflow.augment.subset import AUGMENTATIONS
from hpt_mlflow.evaluation.objectives import maximises
from hpt_mlflow.stages.search.setup import FIRST_RUNG
from hpt_mlflow.tuning.pruning import make_halving, make_pruner, rungs
from hpt_mlflow.tuning.records import best_trial
from hpt_mlflow.tuning.search import SharedSearch
from hpt_mlflow.tuning.space import Space
from hpt_mlflow.tuning.trials import STEPS

# By subset, what one line says.
Scores = dict[str, dict]
REDUCTION = 4
# Of the queue, where that makes a difference.
ORDERS = 10


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
def main(file: Path) -> None:
    """Print both tables for each dataset."""
    recorded: dict[str, dict[int, Scores]] = {}
    for line in file.read_text().splitlines():
        entry = json.loads(line)
        recorded.setdefault(entry["data"], {}).setdefault(entry["seed"], {})[entry["subset"]] = entry
    for data, by_seed in sorted(recorded.items()):
        counts = ", ".join(str(len(scores)) for scores in by_seed.values())
        print(f"{data}, {len(by_seed)} seeds, {counts} of the 32 subsets:\n")
        print("\n".join([*_objectives(by_seed), "", *_searches(by_seed), ""]))


def _objectives(by_seed: dict[int, Scores]) -> list[str]:
    """Spearman's correlation of each objective with the probe and with the probe on test; and of seed with seed."""
    lines = ["| objective | with the probe | with test | test accuracy of its choice, less the probe's, points |"]
    lines.append("|---|---|---|---|")
    for objective in ("probe", "probe held out", "knn", "rotation", "infonce"):
        with_probe, with_test, chosen = [], [], []
        for scores in by_seed.values():
            own, probe = _ranking(scores, objective), _ranking(scores, "probe")
            test = np.array([entry["test"] for entry in scores.values()])
            with_probe.append(spearmanr(own, probe).statistic)
            with_test.append(spearmanr(own, test).statistic)
            chosen.append(100 * (test[own.argmax()] - test[probe.argmax()]))
        lines.append(f"| {objective} | {_range(with_probe)} | {_range(with_test)} | {_range(chosen, '+.1f')} |")
    between = []
    for one, other in combinations(by_seed.values(), 2):
        both = [subset for subset in one if subset in other]
        scores = [[_last(seed[subset]["probe"]) for subset in both] for seed in (one, other)]
        between.append(spearmanr(*scores).statistic)
    return [*lines, "", f"The probe of one seed and that of another: {_range(between)}."]


def _ranking(scores: Scores, objective: str) -> np.ndarray:
    sign = 1 if maximises(objective) else -1
    return sign * np.array([_last(entry[objective]) for entry in scores.values()])


def _searches(by_seed: dict[int, Scores]) -> list[str]:
    """Cost and regret of searches by the probe, beside what needs no search."""
    lines = [
        "| search | share of all steps | regret by seed, points | mean | within 1 point | in other seeds |",
        "|---|---|---|---|---|---|",
    ]
    first_of_all = next(iter(next(iter(by_seed.values())).values()))
    length = int(first_of_all["steps"])
    for pruner, first in _ways(length, sorted(map(int, first_of_all["probe"]))):
        orders = range(ORDERS if pruner == "hyperband" else 1)
        found = {seed: [_replay(s, pruner, length, first, order) for order in orders] for seed, s in by_seed.items()}
        share = np.mean([steps / (length * len(by_seed[seed])) for seed, of in found.items() for _, steps in of])
        chosen = {seed: [subset for subset, _ in of] for seed, of in found.items()}
        lines.append(_line(f"{pruner}, first rung at {first} of {length}", f"{share:.3f}", by_seed, chosen))
    everything = ",".join(AUGMENTATIONS)
    paper = {seed: [everything] for seed, scores in by_seed.items() if everything in scores}
    lines.append(_line("none: the paper's five augmentations", "0", by_seed, paper))
    return [*lines, _line("none: any subset", "0", by_seed, {seed: list(scores) for seed, scores in by_seed.items()})]


def _line(name: str, share: str, by_seed: dict[int, Scores], chosen: dict[int, list[str]]) -> str:
    regrets = {seed: [_regret(by_seed[seed], subset) for subset in subsets] for seed, subsets in chosen.items()}
    means = [float(np.mean(of_seed)) for of_seed in regrets.values()]
    within = np.mean([np.mean(np.array(of_seed) <= 1) for of_seed in regrets.values()])
    elsewhere = np.mean([_elsewhere(by_seed, seed, subset) for seed, subsets in chosen.items() for subset in subsets])
    each = ", ".join(f"{mean:.1f}" for mean in means)
    return f"| {name} | {share} | {each} | {np.mean(means):.2f} | {within:.0%} | {elsewhere:+.2f} |"


def _regret(scores: Scores, subset: str) -> float:
    """Points of the probe by which the best subset, each trained in full, is better than this one."""
    return 100 * (_last(_best(scores)["probe"]) - _last(scores[subset]["probe"]))


def _elsewhere(by_seed: dict[int, Scores], seed: int, subset: str) -> float:
    """The same, of the same two subsets, by the scores of the other seeds, which had no say in the choice."""
    best = _best(by_seed[seed])["subset"]
    others = [scores for other, scores in by_seed.items() if other != seed and {best, subset} <= set(scores)]
    return (
        float(np.mean([100 * (_last(s[best]["probe"]) - _last(s[subset]["probe"])) for s in others])) if others else 0
    )


def _best(scores: Scores) -> dict:
    return max(scores.values(), key=lambda entry: _last(entry["probe"]))


def _ways(length: int, recorded: list[int]) -> Iterator[tuple[str, int]]:
    """Searches all of whose rungs are recorded."""
    for pruner in ("halving", "hyperband"):
        for first in (round(FIRST_RUNG * length), round(2 * FIRST_RUNG * length)):
            if set(rungs(length, first, REDUCTION)) <= set(recorded):
                yield pruner, first


def _replay(scores: Scores, pruner: str, length: int, first: int, order: int) -> tuple[str, int]:
    """The subset that a search takes, and the steps that it has spent."""
    space, places = Space(AUGMENTATIONS), rungs(length, first, REDUCTION)
    halving = make_halving(pruner, places, REDUCTION)
    pruned_by = make_pruner(pruner, length, first, REDUCTION)
    search = SharedSearch(InMemoryStorage(), "replay", space, pruned_by, order, halving=halving)
    search.create({}, maximise=True)
    search.fill([parameters for parameters in space.queue(None, order) if _name(space, parameters) in scores])
    while trial := search.claim("replay:1"):
        of_trial = scores[",".join(space.suggest(trial)[0]) or "none"]["probe"]
        for step in places:
            trial.set_user_attr(STEPS, step)
            trial.report(of_trial[str(step)], step)
            ended = step < length and (step == search.target(trial) or trial.should_prune())
            if ended:
                break
        search.end(trial, TrialState.PRUNED if ended else TrialState.COMPLETE, of_trial[str(step)])
    found = best_trial(search.records(), maximise=True)
    assert found is not None
    return found.name, search.spent_steps()


def _name(space: Space, parameters: dict) -> str:
    return ",".join(space.read(parameters)[0]) or "none"


def _last(by_step: dict[str, float]) -> float:
    return by_step[max(by_step, key=int)]


def _range(values: list[float], form: str = ".2f") -> str:
    finite = [value for value in values if math.isfinite(value)]
    return f"{np.mean(finite):{form}} ({min(finite):{form}} to {max(finite):{form}})"


if __name__ == "__main__":
    main()

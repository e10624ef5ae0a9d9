"""Tables of what `measure.py run` has written."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import product
from pathlib import Path

import click
import numpy as np
from candidates import Candidates
from lines import ALONE, BY_LABELS, DEFAULT, LABEL_FREE, Line, defaults, milestones, taken, trainings
from scipy.stats import spearmanr

from hpt_mlflow.evaluation.objectives import OBJECTIVES, has_judge
from hpt_mlflow.experiments.results import mean_of
from hpt_mlflow.report.figures import BLUE, GREY, plain_axes

JUDGES = (*(name for name in OBJECTIVES if has_judge(name)), *Candidates.names, "step")
# In the order in which results show them; others were tried for single questions.
BASES = ("imagenet", "clipart", "photos")
# Length of the trainings that compare updates.
UPDATE_STEPS = 300
bases_option = click.option("--base", "bases", multiple=True, help="Only these Bases. Default: all.")
files_argument = click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))


@click.command()
@files_argument
def recipes(files: tuple[Path, ...]) -> None:
    """What each recipe but updates gains over the parent as it is at its last step, in points: validation and test."""
    gains: dict[tuple[str, str], dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for training in trainings(files):
        if training[0]["recipe"].startswith("update="):
            continue
        parent, last = training[0], [line for line in training if line["step"]]
        named = [(line["recipe"], line) for line in last if not line["variant"] and line["step"] == line["steps"]]
        named += [(f"{line['recipe']}, {line['variant']}", line) for line in last if line["variant"]]
        for name, line in named:
            change = {figure: 100 * (line[figure] - parent[figure]) for figure in FIGURES}
            gains[name][f"{line['base']} > {line['target']}"].append(change)
    tried = Counter(pair for name, by_pair in gains.items() if "," not in name for pair in by_pair)
    # With the default alone there is nothing to compare; `bars` has it.
    pairs = sorted(pair for pair, count in tried.items() if count > 1)
    print("Gain over the parent as it is at the last step, in points: validation probe / 20-NN, test probe / 20-NN.\n")
    print(f"| recipe | {' | '.join(pairs)} |\n|{'---|' * (1 + len(pairs))}")
    for name, by_pair in gains.items():
        print(f"| {name} | " + " | ".join(_cell(by_pair.get(pair, [])) for pair in pairs) + " |")


FIGURES = ("val_probe", "val_knn", "test_probe", "test_knn")


def _cell(changes: list[Line]) -> str:
    if not changes:
        return ""
    means = [f"{np.mean([change[figure] for change in changes]):+.1f}" for figure in FIGURES]
    return f"{means[0]} / {means[1]}, {means[2]} / {means[3]}" + (f" ({len(changes)})" if len(changes) > 1 else "")


@click.command()
@files_argument
def judges(files: tuple[Path, ...]) -> None:
    """For each judge: Spearman's correlation with the truth within a training, and what choosing by it gains."""
    every = [milestones(training) for training in trainings(files)]
    every = [training for training in every if all(judge in training[0] for judge in JUDGES)]
    print(f"{len(every)} trainings, {len({(t[0]['base'], t[0]['target']) for t in every})} pairs of Base and target.\n")
    print("| judge | truth | Spearman | gain over the parent | of the best gain | over 1 point below the parent |")
    print("|---|---|---|---|---|---|")
    for truth in ("test_probe", "test_knn"):
        for judge in (*JUDGES, LABEL_FREE + ALONE):
            print(f"| {'the last step' if judge == 'step' else judge} | {truth} | {_row(every, judge, truth)} |")
    print()
    checked = [training for training in defaults(files) if f"check_{LABEL_FREE}" in training[0]]
    for judge in (LABEL_FREE, OBJECTIVES[LABEL_FREE].checked_by, BY_LABELS):
        known = [training for training in every if f"cost_{judge}" in training[0]]
        shares = [sum(line[f"cost_{judge}"] for line in training) / training[-1]["seconds"] for training in known]
        print(f"{judge} takes {np.mean(shares):.1%} of the training time (mean of {len(known)} trainings).")
    shares = [sum(line[f"cost_{LABEL_FREE}"] for line in training) / training[-1]["seconds"] for training in checked]
    print(f"{LABEL_FREE} with its check takes {np.mean(shares):.1%} (mean of {len(checked)} trainings).")


def _row(every: list[list[Line]], judge: str, truth: str) -> str:
    correlations, best, gains = [], [], _gains(every, judge, truth)
    for training in every:
        scores, truths = (np.array([line[name] for line in training]) for name in (judge.removesuffix(ALONE), truth))
        if len(set(scores)) > 1 and len(set(truths)) > 1:
            correlations.append(spearmanr(scores, truths).statistic)
        best.append(100 * (truths.max() - truths[0]))
    share = sum(gains) / sum(best) if sum(best) else float("nan")
    harmed = sum(gain < -1 for gain in gains)
    correlation = f"{np.mean(correlations):.2f}" if correlations else "-"
    return f"{correlation} | {np.mean(gains):+.1f} | {share:.0%} | {harmed} of {len(gains)}"


@click.command()
@files_argument
@bases_option
def bars(files: tuple[Path, ...], bases: tuple[str, ...]) -> None:
    """By target and by Base, what the defaults gain over the parent as it is, with 95% intervals over all trainings."""
    every = defaults(files, bases)
    parts = {
        f"{word} {name}": [training for training in every if training[0][key] == name]
        for word, key in (("to", "target"), ("from", "base"))
        for name in sorted({training[0][key] for training in every})
    }
    print("| adapting | trainings | judge | gain, probe | gain, 20-NN | over 1 point below the parent, probe / 20-NN |")
    print("|---|---|---|---|---|---|")
    for judge in (LABEL_FREE, BY_LABELS):
        for name, these in (parts | {"all": every}).items():
            probe, knn = (_gains(these, judge, truth) for truth in ("test_probe", "test_knn"))
            harmed = [str(sum(gain < -1 for gain in gains)) for gains in (probe, knn)]
            cells = [mean_of(values).signed(1) for values in (probe, knn)]
            print(f"| {name} | {len(these)} | {judge} | {' | '.join(cells)} | {' / '.join(harmed)} |")
    found = {judge: np.mean(_gains(every, judge, "test_probe")) for judge in (LABEL_FREE, BY_LABELS, "probe")}
    print(f"\n{LABEL_FREE} finds {found[LABEL_FREE] / found[BY_LABELS]:.0%} of the gain that {BY_LABELS} finds, and")
    print(f"{found[LABEL_FREE] / found['probe']:.0%} of the gain that the probe on validation finds.")


@click.command()
@files_argument
@bases_option
def margins(files: tuple[Path, ...], bases: tuple[str, ...]) -> None:
    """What the defaults gain, and how often they harm, for a margin of 0, 1 and 2 times the noise of the judge."""
    every = [training for training in defaults(files, bases) if "rotation" in training[0]]
    print(f"{len(every)} trainings.\n")
    print("| judge | times the noise | gain, probe | gain, 20-NN | over 1 point below the parent | kept the parent |")
    print("|---|---|---|---|---|---|")
    for judge in ("knn", "probe", LABEL_FREE, LABEL_FREE + ALONE, "rotation"):
        for times in (0, 1, 2) if every[0][0].get(f"noise_{judge}") else (0,):
            chosen = [(training[0], taken(training, judge, times)) for training in every]
            probe, knn = (
                mean_of([100 * (line[truth] - parent[truth]) for parent, line in chosen]).signed(1)
                for truth in ("test_probe", "test_knn")
            )
            harmed = sum(100 * (line["test_probe"] - parent["test_probe"]) < -1 for parent, line in chosen)
            kept = sum(line is parent for parent, line in chosen)
            print(f"| {judge} | {times} | {probe} | {knn} | {harmed} | {kept} |")


@click.command()
@files_argument
def methods(files: tuple[Path, ...]) -> None:
    """By target and Base, test accuracy of the paper's methods at the last step, and of what the defaults register."""
    cells: dict[tuple[str, str], dict[str, list[Line]]] = defaultdict(lambda: defaultdict(list))
    for training in trainings(files):
        every, recipe = milestones(training), training[0]["recipe"]
        pair = cells[training[0]["target"], training[0]["base"]]
        if recipe == DEFAULT and LABEL_FREE in every[0]:
            pair["as it is"] = every[:1]
            pair[f"default, by {LABEL_FREE}"].append(taken(every, LABEL_FREE))
            pair[f"default, by {BY_LABELS}"].append(taken(every, BY_LABELS))
        elif recipe in PAPER_METHODS and every[-1]["step"] == every[-1]["steps"]:
            pair[recipe].append(every[-1])
    every = ("as it is", *PAPER_METHODS, f"default, by {LABEL_FREE}", f"default, by {BY_LABELS}")
    names = [name for name in every if any(pair[name] for (_, base), pair in cells.items() if base in BASES)]
    titles = ["statistics refreshed (the paper's *Base*)" if name == "Base" else name for name in names]
    print("Test accuracy in %, linear probe / 20-NN, means over seeds (± half a 95% interval).\n")
    print(f"| target | Base | {' | '.join(titles)} |\n|{'---|' * (2 + len(names))}")
    for target, base in product(sorted({target for target, _ in cells}), BASES):
        if "as it is" in (pair := cells[target, base]):
            print(f"| {target} | {base} | " + " | ".join(_accuracy(pair[name]) for name in names) + " |")


target_option = click.option("--target", "targets", multiple=True, help="Only these targets. Default: all.")


@click.command()
@files_argument
@target_option
def updates(files: tuple[Path, ...], targets: tuple[str, ...]) -> None:
    """By Base, what each update gains over the parent and over `update=all` in the same trainings: their last steps."""
    _print_updates(files, targets, lambda name: " at " not in name)


@click.command()
@files_argument
@target_option
def rates(files: tuple[Path, ...], targets: tuple[str, ...]) -> None:
    """As `updates`, at other learning rates than their own."""
    _print_updates(files, targets, lambda name: " at " in name)


def _print_updates(files: tuple[Path, ...], targets: tuple[str, ...], wanted: Callable[[str], bool]) -> None:
    found: dict[str, dict[str, dict[tuple[str, int], list[Line]]]] = defaultdict(lambda: defaultdict(dict))
    for training in map(milestones, trainings(files)):
        recipe = training[0]["recipe"]
        if targets and training[0]["target"] not in targets:
            continue
        if training[-1]["step"] == UPDATE_STEPS and (recipe == DEFAULT or recipe.startswith("update=")):
            name = "all" if recipe == DEFAULT else recipe.removeprefix("update=").replace(", learning_rate=", " at ")
            found[training[0]["base"]][name][training[0]["target"], training[0]["seed"]] = training
    print("| Base | update | trainings | gained / lost | over the parent: probe | 20-NN | over all: probe | 20-NN |")
    print(f"|{8 * '---|'}")
    for base, by_update in sorted(found.items()):
        whole = by_update["all"]
        for name, tried in sorted(by_update.items()):
            pairs = sorted(tried.keys() & whole.keys())
            # Alone, what changes all weights is in the other tables.
            if not pairs or not wanted(name) or len(by_update) == 1:
                continue
            over_parent = [(tried[pair][-1], tried[pair][0]) for pair in pairs]
            over_all = [(tried[pair][-1], whole[pair][-1]) for pair in pairs] if name != "all" else []
            gains = [_gain(these, truth) for these in (over_parent, over_all) for truth in ("test_probe", "test_knn")]
            signs = [np.sign(after["test_probe"] - before["test_probe"]) for after, before in over_parent]
            counts = f"{signs.count(1)} / {signs.count(-1)}"
            print(f"| {base} | {name} | {len(pairs)} | {counts} | {' | '.join(gains)} |")


def _gain(pairs: list[tuple[Line, Line]], truth: str) -> str:
    """In points, of the first of each pair over the second."""
    return mean_of([100 * (one[truth] - other[truth]) for one, other in pairs]).signed(1) if pairs else ""


PAPER_METHODS = ("Base", "Target", "HPT", "HPT-BN")


def _accuracy(lines: list[Line]) -> str:
    if not lines:
        return ""
    probe, knn = ([100 * line[figure] for line in lines] for figure in ("test_probe", "test_knn"))
    interval = mean_of(probe)
    spread = f" ± {(interval.high - interval.low) / 2:.1f}" if len(lines) > 1 else ""
    return f"{interval.value:.1f}{spread} / {np.mean(knn):.1f}"


@click.command()
@files_argument
def harm(files: tuple[Path, ...]) -> None:
    """Each network that is over 3 points worse than its parent, and what figures without labels say of it."""
    figures = ("consistency", "rankme", "rotation", "lidar", "retrieval")
    print(f"| network | test probe | {' | '.join(figures)} |\n|{'---|' * (2 + len(figures))}")
    for training in trainings(files):
        parent = training[0]
        for line in training:
            if line["test_probe"] < parent["test_probe"] - 0.03:
                what = f"{line['recipe']}, step {line['step']}" if line["step"] else "parent"
                name = f"{line['base']} > {line['target']}: {what}" + (
                    f", {line['variant']}" if line["variant"] else ""
                )
                changes = [
                    f"{parent[figure]:.3g} to {line[figure]:.3g}" if figure in line else ""
                    for figure in ("test_probe", *figures)
                ]
                print(f"| {name} | {' | '.join(changes)} |")


@click.command()
@files_argument
@click.option("--to", type=click.Path(path_type=Path), required=True, help="PNG file.")
@click.option("--base", "bases", multiple=True, default=BASES, show_default=True)
def picture(files: tuple[Path, ...], to: Path, bases: tuple[str, ...]) -> None:
    """By pair of Base and target, the test accuracy of the parent as it is, and of the model that was registered."""
    every = defaults(files, bases)
    pairs = sorted({(t[0]["target"], t[0]["base"]) for t in every}, reverse=True)
    figure, axes = plain_axes("linear probe on test, %", "", 0.9 + 0.28 * len(pairs))
    for row, pair in enumerate(pairs):
        these = [training for training in every if (training[0]["target"], training[0]["base"]) == pair]
        before = 100 * np.mean([training[0]["test_probe"] for training in these])
        after = [100 * taken(training, BY_LABELS)["test_probe"] for training in these]
        axes.plot([before, np.mean(after)], [row, row], color=BLUE, linewidth=2, alpha=0.4)
        axes.plot(before, row, "o", color=GREY, label="" if row else "the Base as it is")
        axes.plot(after, [row] * len(after), "o", color=BLUE, label="" if row else "adapted to the target")
    axes.set_yticks(range(len(pairs)), [f"{target}, from {base}" for target, base in pairs])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    figure.savefig(to, dpi=150)


def _gains(every: list[list[Line]], judge: str, truth: str) -> list[float]:
    """In points, of the milestone that a stage takes by a judge."""
    return [100 * (taken(training, judge)[truth] - training[0][truth]) for training in every]


TABLES = {table.name: table for table in (recipes, judges, bars, margins, methods, updates, rates, harm) if table.name}

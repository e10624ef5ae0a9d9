"""The answer of an experiment as one HTML file that needs nothing else, and as CSV."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from hpt_mlflow.experiments.claims import HELD, OPPOSITE, claims, verdict_in, words_for
from hpt_mlflow.experiments.figure import experiment_figure
from hpt_mlflow.experiments.results import Estimate, Results, estimate

TITLES = {
    "separability": "How good features become, and how soon",
    "semi-supervised": "Fine-tuning on few labels",
    "sequential": "Which stages, in a row, are best",
    "augmentation": "What is lost without some augmentations",
    "data-amount": "How many images of the target it takes",
}
UNTRAINED_ROW = "untrained"
AXES = {"accuracy": "test top-1, %", "auroc": "test AUROC, %"}
HOW_TO_READ = (
    "Differences are taken seed by seed, with a 95% interval by Student's t. Held means that the interval lies on the "
    "claimed side of no difference, the opposite that it lies on the other side, and not shown that it has both, or "
    "that one seed has no interval. The paper says as good or better, so only the opposite speaks against it. The "
    "splits of the seeds overlap, unless the target brings its own test part, and of twenty comparisons one errs by "
    "chance. Where HPT is there at its first milestone, it may have been sooner: such a ratio has no interval, and "
    "only six seeds that all agree are sure. All methods took the same number of steps on the target, where the paper "
    "gave Target as many as it needed: this asks what a start from the Base is worth within those steps."
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 14px; } th, td { padding: .25rem .8rem .25rem 0; text-align: left; }
tr { border-bottom: 1px solid #ddd; } td { font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; } code { background: #f4f4f4; padding: .1rem .3rem; overflow-wrap: anywhere; }
.held { color: #006b4a; } .not { color: #777; } .opposite { color: #a33b00; }
"""


@dataclass(frozen=True)
class Origin:
    """Where results come from.

    Attributes:
        chain: names of base, source and target.
        command: that makes them again.
        settings: what they were made with, but for defaults.
        runs: of each job, its name, its MLflow run and whether it was made before this study.
        experiment_id: that all these runs are in.
        machine: that this study has run its jobs on.
        hours: from the start to the end of each job, added up; what was interrupted counts from its first start.
    """

    chain: Sequence[str]
    command: str
    settings: Mapping[str, str]
    runs: Sequence[tuple[str, str, bool]]
    experiment_id: str
    machine: str
    hours: float


def figure_as_svg(figure: Figure) -> str:
    """The element alone, for a page."""
    drawn = io.StringIO()
    # Names inside of the picture are random without a salt.
    with rc_context({"svg.hashsalt": "hpt_mlflow"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    text = drawn.getvalue()
    return text[text.index("<svg") :]


def experiment_page(results: Results, origin: Origin) -> str:
    """The page: the figure, a sentence for each claim, the means, and where they come from."""
    title = f"{TITLES[results.study]}: {' > '.join(origin.chain)}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        figure_as_svg(experiment_figure(results)),
        "<h2>What was claimed, and what came of it</h2>",
        "<ul>" + "".join(f'<li class="{_class(text)}">{escape(text)}</li>' for text in claims(results)) + "</ul>",
        f"<p>{escape(HOW_TO_READ)}</p>",
        f"<h2>Mean {AXES[results.metric]}, after the last step</h2>",
        _table(*means_table(results)),
        "<h2>Where this comes from</h2>",
        f"<p>{len(origin.runs)} stages, {sum(before for *_, before in origin.runs)} of them made before; "
        f"{origin.hours:.1f} hours from the start to the end of each, added up (pauses of interrupted ones included), "
        f"on {escape(origin.machine)}.</p><p>Again: <code>{escape(origin.command)}</code></p>",
        _table(("setting", "value"), sorted(origin.settings.items())),
        "<h2>Runs</h2>",
        _table(("stage", "run", "made"), [(name, run, "before" if old else "here") for name, run, old in origin.runs]),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def experiment_markdown(results: Results, origin: Origin) -> str:
    """The same in short, as the run's description; with links to those runs that are not nested in it."""
    lines = [f"**Chain** {' > '.join(origin.chain)}", f"**Study** {results.study}: {TITLES[results.study].lower()}"]
    lines.append("\n".join(f"- {text}" for text in claims(results)))
    lines.append(f"**Again**\n\n```\n{origin.command}\n```")
    if found := [(name, run_id) for name, run_id, before in origin.runs if before]:
        links = [f"- [{_plain(name)}](#/experiments/{origin.experiment_id}/runs/{run_id})" for name, run_id in found]
        lines.append("**Made before, taken over**\n\n" + "\n".join(links))
    return "\n\n".join(lines)


def _plain(text: str) -> str:
    """As text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)


def experiment_csv(results: Results) -> str:
    """Every figure, one a line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study", "method", "condition", "seed", "step", f"test_{results.metric}"])
    for (method, condition, seed), by_steps in results.figures.items():
        writer.writerows([results.study, method, condition, seed, step, by_steps[step]] for step in sorted(by_steps))
    writer.writerows([results.study, UNTRAINED_ROW, "", seed, 0, value] for seed, value in results.untrained.items())
    return text.getvalue()


def read_experiment_csv(text: str) -> Results:
    """What `experiment_csv` was written from."""
    study, metric = "", ""
    figures: dict[tuple[str, str, int], dict[int, float]] = {}
    untrained: dict[int, float] = {}
    for row in csv.DictReader(io.StringIO(text)):
        study = row["study"]
        metric, value = next((name, float(row[f"test_{name}"])) for name in AXES if f"test_{name}" in row)
        if row["method"] == UNTRAINED_ROW:
            untrained[int(row["seed"])] = value
        else:
            curve = figures.setdefault((row["method"], row["condition"], int(row["seed"])), {})
            curve[int(row["step"])] = value
    return Results(study, metric, figures, untrained)


def means_table(results: Results) -> tuple[list[str], list[tuple[str, ...]]]:
    """The mean of each method under each condition after the last step, with its interval: a head, and rows."""
    rows: list[tuple[str, ...]] = []
    for method in results.methods:
        cells = [results.mean(method, condition) for condition in results.conditions]
        rows.append((method, *(_percent(cell) for cell in cells)))
    if results.untrained:
        found = _percent(estimate(list(results.untrained.values())))
        rows.append(("untrained network", *(found for _ in results.conditions)))
    heads = [words_for(results.study, c).removeprefix("with ") if c else "%" for c in results.conditions]
    return ["method", *heads], rows


def _percent(found: Estimate | None) -> str:
    if found is None:
        return ""
    interval = "" if math.isnan(found.low) else f" [{100 * found.low:.1f}, {100 * found.high:.1f}]"
    return f"{100 * found.mean:.1f}{interval}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    others = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{others}</table>"


def _class(sentence: str) -> str:
    return {HELD: "held", OPPOSITE: "opposite"}.get(verdict_in(sentence), "not")

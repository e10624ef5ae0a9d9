"""The answer of a study as one HTML file that needs nothing else, as Markdown, and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib import rc_context
from matplotlib.figure import Figure

from hpt_mlflow.experiments.base import Study
from hpt_mlflow.experiments.claims import HELD, OPPOSITE
from hpt_mlflow.experiments.results import METRICS, Results, mean_of
from hpt_mlflow.interval import Interval

UNTRAINED_ROW = "untrained"
LOOKS = {HELD: "held", OPPOSITE: "opposite"}
HOW_TO_READ = (
    "Differences are taken seed by seed, with a 95% interval by Student's t. The splits of the seeds overlap, unless "
    "the target brings its own test part, and of twenty comparisons one errs by chance."
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


def study_page(study: Study, results: Results, origin: Origin) -> str:
    """The page: the figure, a sentence for each claim, the means, and where they come from."""
    title = f"{study.title}: {' > '.join(origin.chain)}"
    claims = [
        f'<li class="{LOOKS.get(claim.verdict, "not")}">{escape(str(claim))}</li>' for claim in study.claims(results)
    ]
    parts = [
        f"<h1>{escape(title)}</h1>",
        figure_as_svg(study.figure(results)),
        "<h2>Claims and results</h2>",
        f"<ul>{''.join(claims)}</ul>",
        f"<p>{escape(HOW_TO_READ)} {escape(study.how_to_read)}</p>",
        f"<h2>Means after the last step: {METRICS[results.metric]}, %</h2>",
        _table(*means_table(study, results)),
        "<h2>Where this comes from</h2>",
        f"<p>{len(origin.runs)} stages, {sum(before for *_, before in origin.runs)} of them reused; "
        f"{origin.hours:.1f} hours from the start to the end of each, added up (including pauses of interrupted ones), "
        f"on {escape(origin.machine)}.</p><p>To repeat it: <code>{escape(origin.command)}</code></p>",
        _table(("setting", "value"), sorted(origin.settings.items())),
        "<h2>Runs</h2>",
        _table(("stage", "run", "made"), [(name, run, "before" if old else "here") for name, run, old in origin.runs]),
    ]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def study_markdown(study: Study, results: Results, origin: Origin) -> str:
    """The same in short, as the run's description; with links to the runs that are not nested in it."""
    lines = [f"**Chain** {' > '.join(origin.chain)}", f"**Study** {study.name}: {study.title.lower()}"]
    lines.append("\n".join(f"- {claim}" for claim in study.claims(results)))
    lines.append(f"**To repeat it**\n\n```\n{origin.command}\n```")
    if reused := [(name, run_id) for name, run_id, before in origin.runs if before]:
        links = [f"- [{_plain(name)}](#/experiments/{origin.experiment_id}/runs/{run_id})" for name, run_id in reused]
        lines.append("**Reused**\n\n" + "\n".join(links))
    return "\n\n".join(lines)


def _plain(text: str) -> str:
    """As text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>])", r"\\\1", text)


def study_csv(results: Results) -> str:
    """Every score, one per line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["study", "method", "condition", "seed", "step", f"test_{results.metric}"])
    for (method, condition, seed), by_steps in results.scores.items():
        writer.writerows([results.study, method, condition, seed, step, by_steps[step]] for step in sorted(by_steps))
    writer.writerows([results.study, UNTRAINED_ROW, "", seed, 0, value] for seed, value in results.untrained.items())
    return text.getvalue()


def means_table(study: Study, results: Results) -> tuple[list[str], list[tuple[str, ...]]]:
    """The mean of each method under each condition after the last step, with its interval: a head, and rows.

    The last column has the mean time of its last training, if that is known.
    """
    rows = [(method, *(_percent(results.mean(method, c)) for c in results.conditions)) for method in results.methods]
    if results.untrained:
        mean = _percent(mean_of(list(results.untrained.values())))
        rows.append(("untrained network", *(mean for _ in results.conditions)))
    heads = [study.condition_text(condition) if condition else "%" for condition in results.conditions]
    if results.seconds:
        heads.append("last training, s")
        rows = [(*row, f"{results.seconds[row[0]]:.0f}" if row[0] in results.seconds else "") for row in rows]
    return ["method", *heads], rows


def _percent(mean: Interval | None) -> str:
    if mean is None:
        return ""
    value, low, high = (f"{100 * number:.1f}" for number in mean)
    return f"{value} [{low}, {high}]" if mean.is_known else value


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    others = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{others}</table>"

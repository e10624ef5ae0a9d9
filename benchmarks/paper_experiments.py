"""The paper's five experiments on clipart, noto and twemoji, from two Bases, and the page of their results.

    make results                                                # both of these
    python benchmarks/paper_experiments.py run --only clipart   # hours on two cores; finished studies are not repeated
    python benchmarks/paper_experiments.py page                 # docs/results.md, from the studies' runs in MLflow

The page above its mark is written by people.
"""

from __future__ import annotations

import csv
import io
import logging
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import click
import mlflow
from mlflow.entities import Run

from hpt_mlflow import study
from hpt_mlflow.experiments import load_study
from hpt_mlflow.experiments.base import OF_THE_PAPER
from hpt_mlflow.experiments.claims import HELD, NOT_SHOWN, OPPOSITE
from hpt_mlflow.experiments.page import HOW_TO_READ, UNTRAINED_ROW, means_table
from hpt_mlflow.experiments.results import METRICS, Results
from hpt_mlflow.stages.weights import import_weights
from hpt_mlflow.tracking import tags as tag

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT.parent / "shared" / "data"
PAGE = PROJECT / "docs" / "results.md"
FIGURES = PROJECT / "docs" / "images" / "results"
MARK = "<!-- Written by benchmarks/paper_experiments.py from here on. -->"
IMAGENET = "hpt-imagenet"
ALIKE: dict[str, Any] = {"target": "twemoji", "compile": "off", "workers": 0}
# Each in the arithmetic that was fastest on the machine, the same for all of its trainings.
BASES: dict[str, dict[str, Any]] = {
    "clipart": {"base": "clipart", "steps": 100, "precision": "bfloat16"},
    "imagenet": {
        **{"base_model": f"models:/{IMAGENET}@base", "steps": 150, "precision": "float32", "batch_size": 64},
        # With the paper's own strengths, less is left of what the Base can do.
        "strengths": "crop_scale=0.5:1,hue=0.1,blur_sigma=0.1:1",
    },
}
# Settings of single studies. Target needs more steps to come to its best.
MORE: dict[tuple[str, str], dict[str, Any]] = {
    ("clipart", "separability"): {"steps": 300},
    ("clipart", "semi-supervised"): {"labels": "100,100%", "protocol_steps": 100},
    # Its evaluations take longer: fewer milestones.
    ("imagenet", "separability"): {"steps": 300, "milestones": "10%,25%,50%,100%"},
    ("imagenet", "semi-supervised"): {"labels": "100,100%", "protocol_steps": 100},
    # Shorter, and with fewer amounts, only to save hours.
    ("imagenet", "augmentation"): {"steps": 60},
    ("imagenet", "data-amount"): {"amounts": "1%,10%,100%"},
    **{(base, "sequential"): {"source": "noto"} for base in BASES},
}
TITLES_OF_BASES = {"clipart": "From clipart and random weights", "imagenet": "From ImageNet"}
# What the paper says (Reed et al., WACV 2022), by the study that asks for it.
PAPER = {
    "separability": (
        "HPT is as good as or better than Base and Target on 15 of 16 datasets, and converges up to 80 times sooner"
    ),
    "semi-supervised": "with 1,000 labels HPT is best on 15 of 16 datasets; HPT-BN never beats it",
    "sequential": "B+S+T is the best sequence on all three targets",
    "augmentation": "HPT loses less than Target without some augmentations (not on CheXpert), and stays above it",
    "data-amount": "HPT is best where there are few images; HPT-BN below about 5,000",
}


class Finished(NamedTuple):
    """A study that has been run."""

    base: str
    run: Run
    results: Results


@click.group()
@click.option("--experiment", default="paper-experiments", show_default=True)
def main(experiment: str) -> None:
    """The paper's experiments here."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_experiment(experiment)


@main.command()
@click.option("--data", default=str(DATA), show_default=True, help="Folder with clipart, noto and twemoji.")
@click.option("--only", type=click.Choice(list(BASES)), help="From one of the Bases.")
@click.option("--at-once", default=2, show_default=True, help="Stages side by side.")
def run(data: str, only: str | None, at_once: int) -> None:
    """Run the studies that are not finished yet."""
    for base in [only] if only else BASES:
        if base == "imagenet":
            prepare_imagenet()
        for name in PAPER:
            study(study=name, root=data, at_once=at_once, **ALIKE | BASES[base] | MORE.get((base, name), {}))


@main.command()
def page() -> None:
    """Write the page from the run that did the work of each study: the first one with the newest settings."""
    conditions = "tags.`hpt.stage` = 'study' and attributes.status = 'FINISHED'"
    runs: dict[tuple[str, str], Run] = {}
    for newer in mlflow.search_runs(filter_string=conditions, order_by=["end_time"], output_format="list"):
        tags = newer.data.tags
        key = ("clipart" if newer.data.params["settings/base_model"] == "None" else "imagenet", tags[tag.STUDY])
        if key not in runs or runs[key].data.tags[tag.FINGERPRINT] != tags[tag.FINGERPRINT]:
            runs[key] = newer
    finished = []
    for base, name in product(BASES, PAPER):
        if made := runs.get((base, name)):
            table = mlflow.artifacts.load_text(f"runs:/{made.info.run_id}/study.csv")
            finished.append(Finished(base, made, read_study_csv(table)))
    above = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{above}{MARK}\n\n{below_the_mark(finished)}")


def read_study_csv(text: str) -> Results:
    """What `study_csv` was written from."""
    study, metric = "", ""
    scores: dict[tuple[str, str, int], dict[int, float]] = {}
    untrained: dict[int, float] = {}
    for row in csv.DictReader(io.StringIO(text)):
        study = row["study"]
        metric, value = next((name, float(row[f"test_{name}"])) for name in METRICS if f"test_{name}" in row)
        if row["method"] == UNTRAINED_ROW:
            untrained[int(row["seed"])] = value
        else:
            curve = scores.setdefault((row["method"], row["condition"], int(row["seed"])), {})
            curve[int(row["step"])] = value
    return Results(study, metric, scores, untrained)


def prepare_imagenet() -> None:
    """Register the weights of EfficientNet-Lite0, once, for images of 48 pixels."""
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name='{IMAGENET}'"):
        import_weights("efficientnet-lite0", model_name=IMAGENET, alias="base", image_size=48)


def below_the_mark(finished: list[Finished]) -> str:
    """Markdown; draws the figures too."""
    parts = ["## Beside the paper", beside_the_paper(finished), f"{HOW_TO_READ} {OF_THE_PAPER}"]
    for base in dict.fromkeys(each.base for each in finished):
        parts.append(f"## {TITLES_OF_BASES[base]}")
        for each in finished:
            if each.base == base:
                parts += of_one_study(each)
    return "\n\n".join(parts) + "\n"


def beside_the_paper(finished: list[Finished]) -> str:
    """A line per study: what the paper says, and how many of the comparisons behind it held here."""
    by_study = {(each.base, each.results.study): each.results for each in finished}
    bases = list(dict.fromkeys(each.base for each in finished))
    lines = [
        f"| study | the paper | {' | '.join(TITLES_OF_BASES[base].lower() for base in bases)} |",
        "|---" * (2 + len(bases)) + "|",
    ]
    for name, statement in PAPER.items():
        study_here = load_study(name)
        cells = []
        for base in bases:
            results = by_study.get((base, name))
            count = Counter(claim.verdict for claim in study_here.claims(results)) if results else Counter()
            cells.append(", ".join(f"{count[word]} {word}" for word in (HELD, NOT_SHOWN, OPPOSITE) if count[word]))
        lines.append(f"| {name} | {statement} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_one_study(finished: Finished) -> list[str]:
    """The figure, the means, the claims, and where they come from."""
    base, run, results = finished
    study_here = load_study(results.study)
    FIGURES.mkdir(parents=True, exist_ok=True)
    file = FIGURES / f"{base}_{study_here.name}.png"
    study_here.figure(results).savefig(file, dpi=90)
    head, rows = means_table(study_here, results)
    table = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    tags, metrics, params = run.data.tags, run.data.metrics, run.data.params
    return [
        f"### {study_here.name.capitalize()}: {study_here.title.lower()}",
        f"![{study_here.name} from {base}]({file.relative_to(PAGE.parent).as_posix()})",
        "\n".join(table),
        "\n".join(f"- {claim}" for claim in study_here.claims(results)),
        f"```\n{tags[tag.CONTINUE].replace(params['settings/root'], 'DATA')}\n```",
        f"{metrics['study/stages']:.0f} stages, {metrics['study/reused']:.0f} of them there from other studies; "
        f"{metrics['study/hours']:.1f} hours from the start to the end of each, added up (pauses of interrupted ones "
        f"included); {params['settings/at_once']} at once on {tags[tag.MACHINE]}.",
    ]


if __name__ == "__main__":
    main()

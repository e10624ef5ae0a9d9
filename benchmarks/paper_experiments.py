"""The paper's five experiments on clipart, noto and twemoji, from two Bases, and the page of what came of them.

    make results                                                # both of these
    python benchmarks/paper_experiments.py run --only clipart   # hours on two cores; what is finished is not run again
    python benchmarks/paper_experiments.py page                 # docs/results.md, from the studies' runs in MLflow

What stands on the page above its mark is written by people.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import click
import mlflow
from mlflow.entities import Run

from hpt_mlflow import study
from hpt_mlflow.experiments.claims import HELD, NOT_SHOWN, OPPOSITE, claims, verdict_in
from hpt_mlflow.experiments.figure import experiment_figure
from hpt_mlflow.experiments.page import HOW_TO_READ, TITLES, means_table, read_experiment_csv
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.stages.weights import import_weights

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT.parent / "shared" / "data"
PAGE = PROJECT / "docs" / "results.md"
FIGURES = PROJECT / "docs" / "images" / "results"
MARK = "<!-- Written by benchmarks/paper_experiments.py from here on. -->"
IMAGENET = "hpt-imagenet"
ALIKE: dict[str, Any] = {"target": "twemoji", "compile": "off", "workers": 0}
# Each in the arithmetic that was fastest where it was run: one for all of its trainings.
BASES: dict[str, dict[str, Any]] = {
    "clipart": {"base": "clipart", "steps": 100, "precision": "bfloat16"},
    "imagenet": {
        **{"base_model": f"models:/{IMAGENET}@base", "steps": 150, "precision": "float32", "batch_size": 64},
        # With the paper's own strengths, less is left of what the Base can do.
        "strengths": "crop_scale=0.5:1,hue=0.1,blur_sigma=0.1:1",
    },
}
# What only some studies take. Target needs more steps to come to its best.
MORE: dict[tuple[str, str], dict[str, Any]] = {
    ("clipart", "separability"): {"steps": 300},
    ("clipart", "semi-supervised"): {"labels": "100,100%", "protocol_steps": 100},
    # Its evaluations cost more: fewer milestones.
    ("imagenet", "separability"): {"steps": 300, "milestones": "10%,25%,50%,100%"},
    ("imagenet", "semi-supervised"): {"labels": "100,100%", "protocol_steps": 100},
    # Shorter, and with fewer amounts, only for the hours that it takes.
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


class Found(NamedTuple):
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
    """Run the studies that are not there yet."""
    for base in [only] if only else BASES:
        if base == "imagenet":
            prepare_imagenet()
        for name in PAPER:
            study(study=name, root=data, at_once=at_once, **ALIKE | BASES[base] | MORE.get((base, name), {}))


@main.command()
def page() -> None:
    """Write the page from the run of each study that has done the work: the first one with its newest settings."""
    conditions = "tags.`hpt.stage` = 'study' and attributes.status = 'FINISHED'"
    chosen: dict[tuple[str, str], Run] = {}
    for made in mlflow.search_runs(filter_string=conditions, order_by=["end_time"], output_format="list"):
        base = "clipart" if made.data.params["settings/base_model"] == "None" else "imagenet"
        held = chosen.get((base, made.data.tags["hpt.study"]))
        if held is None or held.data.tags["hpt.fingerprint"] != made.data.tags["hpt.fingerprint"]:
            chosen[base, made.data.tags["hpt.study"]] = made
    found = []
    for base, name in product(BASES, PAPER):
        if (base, name) in chosen:
            made = chosen[base, name]
            table = mlflow.artifacts.load_text(f"runs:/{made.info.run_id}/study.csv")
            found.append(Found(base, made, read_experiment_csv(table)))
    above = PAGE.read_text().partition(MARK)[0]
    PAGE.write_text(f"{above}{MARK}\n\n{below_the_mark(found)}")


def prepare_imagenet() -> None:
    """Register the weights of EfficientNet-Lite0, once, for images of 48 pixels."""
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name='{IMAGENET}'"):
        import_weights("efficientnet-lite0", model_name=IMAGENET, alias="base", image_size=48)


def below_the_mark(found: list[Found]) -> str:
    """Markdown; draws the figures beside it."""
    parts = ["## Beside the paper", beside_the_paper(found), HOW_TO_READ]
    for base in dict.fromkeys(one.base for one in found):
        parts.append(f"## {TITLES_OF_BASES[base]}")
        for one in found:
            if one.base == base:
                parts += of_one_study(one)
    return "\n\n".join(parts) + "\n"


def beside_the_paper(found: list[Found]) -> str:
    """A line for each study: what the paper says, and how many of the comparisons behind it held here."""
    bases = list(dict.fromkeys(one.base for one in found))
    lines = [
        f"| study | the paper | {' | '.join(TITLES_OF_BASES[base].lower() for base in bases)} |",
        "|---" * (2 + len(bases)) + "|",
    ]
    for name, said in PAPER.items():
        cells = []
        for base in bases:
            texts = [
                text for one in found if (one.base, one.results.study) == (base, name) for text in claims(one.results)
            ]
            count = Counter(map(verdict_in, texts))
            said_here = (f"{count[verdict]} {verdict}" for verdict in (HELD, NOT_SHOWN, OPPOSITE) if count[verdict])
            cells.append(", ".join(said_here))
        lines.append(f"| {name} | {said} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_one_study(one: Found) -> list[str]:
    """The figure, the means, the sentences, and where they come from."""
    name = one.results.study
    FIGURES.mkdir(parents=True, exist_ok=True)
    file = FIGURES / f"{one.base}_{name}.png"
    experiment_figure(one.results).savefig(file, dpi=90)
    head, rows = means_table(one.results)
    table = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    tags, metrics = one.run.data.tags, one.run.data.metrics
    command = re.search(r"```\n(.*?)\n```", tags["mlflow.note.content"], re.DOTALL)
    assert command is not None
    return [
        f"### {name.capitalize()}: {TITLES[name].lower()}",
        f"![{name} from {one.base}]({file.relative_to(PAGE.parent).as_posix()})",
        "\n".join(table),
        "\n".join(f"- {text}" for text in claims(one.results)),
        f"```\n{command[1].replace(one.run.data.params['settings/root'], 'DATA')}\n```",
        f"{metrics['study/stages']:.0f} stages, {metrics['study/reused']:.0f} of them there from other studies; "
        f"{metrics['study/hours']:.1f} hours from the start to the end of each, added up (pauses of interrupted ones "
        f"included); {one.run.data.params['settings/at_once']} at once on {tags['hpt.machine']}.",
    ]


if __name__ == "__main__":
    main()

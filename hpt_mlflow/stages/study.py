"""Study: one of the paper's experiments, from its trainings to the figure that answers it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments import load_study
from hpt_mlflow.experiments.base import Study
from hpt_mlflow.experiments.page import Origin, figure_as_svg, study_csv, study_markdown, study_page
from hpt_mlflow.experiments.plan import Job, StudyPlan
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.machine import machine
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.stages.objects import refuse_objects
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.result import StageResult, result_of
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.stages.studies.checks import check_jobs, check_processes
from hpt_mlflow.stages.studies.cost import seconds_of
from hpt_mlflow.stages.studies.jobs import Done, Workplace, done_before, run_jobs
from hpt_mlflow.stages.studies.results import results_of
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import FoundModel, check_names, find_model
from hpt_mlflow.tracking.runs.nesting import current_run_id
from hpt_mlflow.tracking.runs.resume import EarlierRun, earlier_run
from hpt_mlflow.tracking.runs.reuse import get_run
from hpt_mlflow.tracking.runs.stage_run import StageRun, stage_run
from hpt_mlflow.training.plan import PRESETS

PAGE, CSV, SVG, PNG = "study.html", "study.csv", "study.svg", "study.png"


@takes(StudySettings)
def study(chosen: StudySettings) -> StageResult | None:
    """Run the trainings and evaluations of one of the paper's experiments, and answer its claims.

    Finished stages with the same settings, data and parent are reused, from any run. The same command resumes what was
    interrupted.

    Returns:
        None for a dry run.

    Raises:
        HptError: something that the user can mend is wrong; before any long work if possible.
    """
    prepared = _prepare(chosen)
    this, chosen, plan, datasets = prepared.study, prepared.settings, prepared.plan, prepared.datasets
    if chosen.dry_run:
        print(_describe(plan, chosen, datasets, prepared.network))
        return None
    named = [datasets[address] for address in _addresses(chosen).values()]
    identity = identify("study", chosen, named, chosen.base_model)
    chain = (*prepared.chain, *(dataset.name for dataset in named))
    with earlier_run(identity, chosen.resume, current_run_id()) as earlier:
        if earlier and earlier.finished:
            return result_of(earlier)
        with stage_run(f"study {this.name}: {' > '.join(chain)}", identity, earlier) as run:
            _introduce(run, chosen, chain, earlier)
            workplace = Workplace(datasets, run.run_id, chosen.at_once, reuse=chosen.resume != "never")
            done = run_jobs(plan.jobs, workplace, _announcer(len(plan.jobs)))
            results = results_of(this, plan, done)
            origin = _origin(chosen, chain, done, identity.command)
            _report(run, this, results, origin)
            means = _means(results)
            reused = sum(job.reused for job in done.values())
            run.metrics(means | {"study/stages": len(done), "study/reused": reused, "study/hours": origin.hours}, 0)
            model = done[this.result(plan)].model
            run.tags({tag.MODEL: model})
            return StageResult(run.run_id, model, chain, means)


@takes(StudySettings)
def study_plan(chosen: StudySettings) -> StudyPlan:
    """The trainings and evaluations that `study` would run, without running them.

    Raises:
        HptError: as `study` does before any long work.
    """
    return _prepare(chosen).plan


@dataclass(frozen=True)
class _Prepared:
    """A study before it is run.

    Attributes:
        settings: with the Base's version in place of an alias.
        datasets: by address.
        network: of all trainings.
        chain: names of the datasets behind a registered Base, oldest first.
    """

    study: Study
    settings: StudySettings
    plan: StudyPlan
    datasets: dict[str, Dataset]
    network: Architecture
    chain: tuple[str, ...]


def _prepare(chosen: StudySettings) -> _Prepared:
    """Open the datasets, and plan and check all jobs."""
    check_processes(chosen)
    refuse_objects(chosen)
    datasets = _open_datasets(chosen)
    connect()
    check_names(chosen.model_name, None)
    base = find_model(chosen.base_model, "base_model", chosen.model_name) if chosen.base_model else None
    network = _network(chosen, base)
    if base:
        chosen = _with_base(chosen, base)
    this = load_study(chosen.study)
    # Of the seeds' splits the smallest, so that sizes that have to be cut are the same for all.
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    images = min(len(datasets[chosen.target].split(seed).seen) for seed in seeds)
    plan = this.plan(chosen, images, network if base else None)
    check_jobs(plan, datasets, network, this.own_names)
    return _Prepared(this, chosen, plan, datasets, network, base.card.chain if base else ())


def _open_datasets(chosen: StudySettings) -> dict[str, Dataset]:
    """By address; raises HptError if one cannot be opened, or the target has no labels."""
    datasets = {address: _open(name, address, chosen.root) for name, address in _addresses(chosen).items()}
    target = datasets[chosen.target]
    if target.labels is None:
        raise HptError(f"{target.name} has no labels, by which a study compares methods", "label it", setting="target")
    return datasets


def _addresses(chosen: StudySettings) -> dict[str, str]:
    """Of base, source and target, if there are any, by the name of the setting."""
    base = None if chosen.base_model else chosen.base
    addresses = {"base": base, "source": chosen.source, "target": chosen.target}
    return {name: address for name, address in addresses.items() if address}


def _open(name: str, address: str, root: str | None) -> Dataset:
    try:
        return open_dataset(address, root)
    except HptError as error:
        # Other stages have one dataset, and call it data.
        raise (error.about(name) if error.setting == "data" else error) from error


def _network(chosen: StudySettings, base: FoundModel | None) -> Architecture:
    """Of all trainings: that of the registered Base, if there is one; raises HptError if settings contradict it."""
    if base is None:
        preset = PRESETS[chosen.preset]
        return Architecture(
            chosen.arch or preset.arch,
            chosen.image_size or preset.image_size,
            chosen.small_stem,
            features=chosen.features or "",
        )
    return base.card.architecture.requested(
        str(chosen.base_model), chosen.arch, chosen.image_size, chosen.small_stem, chosen.features
    )


def _with_base(chosen: StudySettings, base: FoundModel) -> StudySettings:
    """The settings with the Base's version in place of an alias, and without the image size that it has anyway."""
    own_size = None if chosen.image_size == base.card.architecture.image_size else chosen.image_size
    return replace(chosen, base_model=base.uri, image_size=own_size)


def _describe(plan: StudyPlan, chosen: StudySettings, datasets: Mapping[str, Dataset], network: Architecture) -> str:
    """What would be run, and what it costs."""
    jobs = plan.jobs
    trainings = Counter((job.label, job.steps) for job in jobs if job.stage != "evaluate")
    lines = [f"{count} x {label}: {steps:,} steps" for (label, steps), count in trainings.items()]
    workplace = Workplace(datasets, "", chosen.at_once, reuse=chosen.resume != "never")
    done = done_before(jobs, workplace)
    left = [job for job in jobs if job not in done]
    reused = f" {len(done)} of these stages are there already." if done else ""
    seconds = seconds_of(left, chosen, datasets, network)
    lines += [
        f"{trainings.total()} trainings of {sum(job.steps for job in jobs):,} optimiser steps together, "
        f"{len(jobs) - trainings.total()} evaluations.{reused}",
        f"About {_duration(seconds)} for {len(left)} stages, by short trials on this machine.",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


def _introduce(run: StageRun, chosen: StudySettings, chain: tuple[str, ...], earlier: EarlierRun | None) -> None:
    if earlier is None:
        tags = {tag.STAGE: "study", tag.STUDY: chosen.study, tag.CHAIN: " > ".join(chain)}
        run.tags(tags | {tag.MACHINE: _machine(chosen)})
        run.params(asdict(chosen))


def _machine(chosen: StudySettings) -> str:
    return machine(resolve_device(chosen.device))


def _announcer(total: int) -> Callable[[Job, Done, int], None]:
    """A function that prints the progress."""

    def announce(job: Job, done: Done, count: int) -> None:
        source = f" (reused: run {done.run_id})" if done.reused else ""
        print(f"{count} of {total}: {job.name}{source}", file=sys.stderr)

    return announce


def _origin(chosen: StudySettings, chain: tuple[str, ...], done: Mapping[Job, Done], command: str) -> Origin:
    given = {f.name: str(getattr(chosen, f.name)) for f in fields(chosen) if getattr(chosen, f.name) != f.default}
    runs = [(job.name, result.run_id, result.reused) for job, result in done.items()]
    infos = [get_run(result.run_id).info for result in done.values()]
    hours = sum((info.end_time or info.start_time) - info.start_time for info in infos) / 3.6e6
    return Origin(chain, command, given, runs, infos[0].experiment_id, _machine(chosen), hours)


def _report(run: StageRun, this: Study, results: Results, origin: Origin) -> None:
    """Log the figure, the table, the page and the description."""
    figure = this.figure(results)
    texts = {SVG: figure_as_svg(figure), CSV: study_csv(results), PAGE: study_page(this, results, origin)}

    def fill(folder: Path) -> None:
        for name, text in texts.items():
            (folder / name).write_text(text)

    run.picture(figure, PNG)
    kept = run.files(list(texts), fill)
    run.describe(study_markdown(this, results, origin))
    if error := run.failure(kept):
        raise HptError(f"the study's page cannot be written: {error}", "free some space and run the same command again")


def _means(results: Results) -> dict[str, float]:
    """Metrics of the run: the mean of each method under each condition."""
    metrics = {}
    for method in results.methods:
        for condition in results.conditions:
            mean = results.mean(method, condition)
            name = "/".join(filter(None, (method, condition.replace(",", " ").replace("%", " percent"))))
            if mean:
                metrics[f"{name}/{results.metric}".replace("+", "-")] = mean.value
    return metrics

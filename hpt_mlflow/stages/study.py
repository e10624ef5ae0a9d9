"""Study: one of the paper's experiments, from its trainings to the figure that answers it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.experiments.figure import experiment_figure
from hpt_mlflow.experiments.page import Origin, experiment_csv, experiment_markdown, experiment_page, figure_as_svg
from hpt_mlflow.experiments.plan import ExperimentPlan, Job
from hpt_mlflow.experiments.results import Results
from hpt_mlflow.experiments.studies import make_experiment
from hpt_mlflow.group import joins_others
from hpt_mlflow.machine import machine
from hpt_mlflow.models.architecture import Architecture
from hpt_mlflow.settings import StudySettings
from hpt_mlflow.stages.processes.device import resolve_device
from hpt_mlflow.stages.result import StageResult, result_of
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.stages.studies.checks import check_batch_norms, check_jobs, check_processes
from hpt_mlflow.stages.studies.cost import seconds_of
from hpt_mlflow.stages.studies.jobs import Done, Workplace, done_before, run_jobs
from hpt_mlflow.stages.training.resolve import identify
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.models.store import FoundModel, check_names, find_model
from hpt_mlflow.tracking.runs.nesting import current_run_id
from hpt_mlflow.tracking.runs.resume import Earlier, earlier_run
from hpt_mlflow.tracking.runs.reuse import figures_by_step, run_of
from hpt_mlflow.tracking.runs.stage_run import StageRun, stage_run
from hpt_mlflow.training.plan import PRESETS

PAGE, CSV, SVG, PNG = "study.html", "study.csv", "study.svg", "study.png"
# The methods whose model a study is about, the first one that it has.
MAIN_METHODS = ("HPT", "B+S+T")


@takes(StudySettings)
def study(chosen: StudySettings) -> StageResult | None:
    """Run what an experiment of the paper takes and is not there yet, and answer its claims.

    A finished stage with the same settings, data and parent is taken over, from whatever run. What was interrupted goes
    on with the same command.

    Returns:
        None for a dry run.

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """
    if joins_others():
        raise HptError(
            "study starts processes itself: use --at-once, or --nproc for each training, without torchrun and "
            "WORLD_SIZE"
        )
    check_processes(chosen)
    datasets = _open_datasets(chosen)
    connect()
    check_names(chosen.model_name, None)
    base = find_model(chosen.base_model, "base_model", chosen.model_name) if chosen.base_model else None
    network = _network(chosen, base)
    chosen = _as_the_base(chosen, base) if base else chosen
    plan = _plan(chosen, datasets, network)
    if chosen.dry_run:
        print(_describe(plan, chosen, datasets, network))
        return None
    named = [datasets[address] for address in _addresses(chosen).values()]
    identity = identify("study", chosen, named, chosen.base_model)
    chain = (*(base.card.chain if base else ()), *(dataset.name for dataset in named))
    with earlier_run(identity, chosen.resume, current_run_id()) as earlier:
        if earlier and earlier.finished:
            return result_of(earlier)
        with stage_run(f"study {chosen.study}: {' > '.join(chain)}", identity, earlier) as run:
            _introduce(run, chosen, chain, earlier)
            place = Workplace(datasets, run.run_id, chosen.at_once, reuse=chosen.resume != "never")
            done = run_jobs(plan.jobs, place, _announcer(len(plan.jobs)))
            results = _results(plan, done)
            origin = _origin(chosen, chain, done, identity.command)
            _report(run, results, origin)
            figures = _means(results)
            reused = sum(one.reused for one in done.values())
            run.metrics(figures | {"study/stages": len(done), "study/reused": reused, "study/hours": origin.hours}, 0)
            model = _main_model(plan, done)
            run.tags({tag.MODEL: model})
            return StageResult(run.run_id, model, chain, figures)


def _open_datasets(chosen: StudySettings) -> dict[str, Dataset]:
    """By address.

    Raises:
        HptError: one cannot be opened, or the target has no labels.
    """
    datasets = {address: _open(name, address, chosen.root) for name, address in _addresses(chosen).items()}
    target = datasets[chosen.target]
    if target.labels is None:
        raise HptError(f"target: {target.name} has no labels, by which a study compares methods; give it labels")
    return datasets


def _addresses(chosen: StudySettings) -> dict[str, str]:
    """Of base, source and target, as far as there are any; by the name of the setting."""
    base = None if chosen.base_model else chosen.base
    addresses = {"base": base, "source": chosen.source, "target": chosen.target}
    return {name: address for name, address in addresses.items() if address}


def _open(name: str, address: str, root: str | None) -> Dataset:
    try:
        return open_dataset(address, root)
    except HptError as error:
        # Other stages have one dataset, and call it data.
        raise HptError(str(error).replace("data:", f"{name}:", 1)) from error


def _network(chosen: StudySettings, base: FoundModel | None) -> Architecture:
    """Of all trainings: that of the registered Base, where there is one.

    Raises:
        HptError: another one is asked for.
    """
    if base is None:
        preset = PRESETS[chosen.preset]
        return Architecture(chosen.arch or preset.arch, chosen.image_size or preset.image_size, chosen.small_stem)
    return base.card.architecture.requested(str(chosen.base_model), chosen.arch, chosen.image_size, chosen.small_stem)


def _as_the_base(chosen: StudySettings, base: FoundModel) -> StudySettings:
    """The settings with the Base's number in place of an alias, and without an image size that it has anyway."""
    own_size = None if chosen.image_size == base.card.architecture.image_size else chosen.image_size
    return replace(chosen, base_model=base.uri, image_size=own_size)


def _plan(chosen: StudySettings, datasets: Mapping[str, Dataset], network: Architecture) -> ExperimentPlan:
    """All that is run, checked.

    Raises:
        HptError: one of the stages would refuse it.
    """
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    # Of the seeds' splits the smallest, so that sizes that have to be cut are the same for all.
    images = min(len(datasets[chosen.target].split(seed).seen) for seed in seeds)
    # What starts from random weights says itself what its network is, as another study's jobs would.
    plan = make_experiment(chosen, images, network if chosen.base_model else None)
    check_jobs(plan, datasets)
    if chosen.study != "augmentation":
        check_batch_norms(network)
    return plan


def _describe(
    plan: ExperimentPlan, chosen: StudySettings, datasets: Mapping[str, Dataset], network: Architecture
) -> str:
    """What would be run, and what it costs."""
    jobs = plan.jobs
    trainings = Counter((job.label, job.steps) for job in jobs if job.stage != "evaluate")
    lines = [f"{count} x {label}: {steps:,} steps" for (label, steps), count in trainings.items()]
    place = Workplace(datasets, "", chosen.at_once, reuse=chosen.resume != "never")
    done = done_before(jobs, place)
    left = [job for job in jobs if job not in done]
    there = f" {len(done)} of these stages are there already." if done else ""
    alike = next(job for job in jobs if job.stage == "pretrain" and job.said["data"] == chosen.target)
    seconds = seconds_of(left, alike, chosen, datasets, network)
    return "\n".join(
        [
            *lines,
            f"{trainings.total()} trainings of {sum(job.steps for job in jobs):,} optimiser steps together, "
            f"{len(jobs) - trainings.total()} evaluations.{there}",
            f"About {_duration(seconds)} for {len(left)} stages, by short trials on this machine.",
        ]
    )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


def _introduce(run: StageRun, chosen: StudySettings, chain: tuple[str, ...], earlier: Earlier | None) -> None:
    if earlier is None:
        tags = {tag.STAGE: "study", tag.STUDY: chosen.study, tag.CHAIN: " > ".join(chain)}
        run.tags(tags | {tag.MACHINE: _machine(chosen)})
        run.params(asdict(chosen))


def _machine(chosen: StudySettings) -> str:
    return machine(resolve_device(chosen.device))


def _announcer(total: int) -> Callable[[Job, Done, int], None]:
    """What says on the terminal how far the study is."""

    def announce(job: Job, done: Done, count: int) -> None:
        found = f" (found: run {done.run_id})" if done.reused else ""
        print(f"{count} of {total}: {job.name}{found}", file=sys.stderr)

    return announce


def _results(plan: ExperimentPlan, done: Mapping[Job, Done]) -> Results:
    """The test figures of all points, as MLflow has them."""
    metric = ""
    figures: dict[tuple[str, str, int], dict[int, float]] = {}
    untrained: dict[int, float] = {}
    for point in plan.points:
        run = run_of(done[point.evaluation].run_id)
        metric = run.data.tags[tag.METRIC].removeprefix("test/")
        figures[point.method, point.condition, point.seed] = figures_by_step(run.info.run_id, f"test/{metric}")
        if f"random/{metric}" in run.data.metrics:
            untrained.setdefault(point.seed, run.data.metrics[f"random/{metric}"])
    return Results(plan.study, metric, figures, untrained)


def _origin(chosen: StudySettings, chain: tuple[str, ...], done: Mapping[Job, Done], command: str) -> Origin:
    said = {f.name: str(getattr(chosen, f.name)) for f in fields(chosen) if getattr(chosen, f.name) != f.default}
    runs = [(job.name, result.run_id, result.reused) for job, result in done.items()]
    infos = [run_of(result.run_id).info for result in done.values()]
    hours = sum((info.end_time or info.start_time) - info.start_time for info in infos) / 3.6e6
    return Origin(chain, command, said, runs, infos[0].experiment_id, _machine(chosen), hours)


def _report(run: StageRun, results: Results, origin: Origin) -> None:
    """Log the figure, the table, the page and the description."""
    figure = experiment_figure(results)
    texts = {
        SVG: figure_as_svg(figure),
        CSV: experiment_csv(results),
        PAGE: experiment_page(results, origin),
    }

    def fill(folder: Path) -> None:
        for name, text in texts.items():
            (folder / name).write_text(text)

    run.picture(figure, PNG)
    kept = run.tell("artifacts", {"files": list(texts)}, fill)
    run.describe(experiment_markdown(results, origin))
    if error := run.failure(kept):
        raise HptError(f"the study's page cannot be kept: {error}; make room and run the same command again")


def _main_model(plan: ExperimentPlan, done: Mapping[Job, Done]) -> str:
    """What the method that the study is about has made with the first seed."""
    trainings = [point.evaluation.start for point in plan.points if point.method in MAIN_METHODS]
    mine = [training for training in trainings if training and training.said["seed"] == plan.points[0].seed]
    # Of data-amount the last one has most images; of augmentation the first one has all augmentations.
    return done[mine[-1 if plan.study == "data-amount" else 0]].model


def _means(results: Results) -> dict[str, float]:
    """Metrics of the run: the mean of each method under each condition."""
    found = {}
    for method in results.methods:
        for condition in results.conditions:
            mean = results.mean(method, condition)
            name = "/".join(filter(None, (method, condition.replace(",", " ").replace("%", " percent"))))
            if mean:
                found[f"{name}/{results.metric}".replace("+", "-")] = mean.mean
    return found

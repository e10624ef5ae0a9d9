"""Inspect: what datasets hold, before anything learns from them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from hpt_mlflow.data.dataset import Dataset
from hpt_mlflow.data.file_rows import Files
from hpt_mlflow.data.perceptual import SIDE
from hpt_mlflow.data.pictures import Frame
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError, one_line, printable
from hpt_mlflow.files import replacing
from hpt_mlflow.inspection.findings import Findings, Place
from hpt_mlflow.inspection.near import NearPairs, near_pairs
from hpt_mlflow.inspection.search import check_can_search
from hpt_mlflow.inspection.survey import Survey, survey
from hpt_mlflow.report.commands import stage_command
from hpt_mlflow.report.inspection_page import inspection_page
from hpt_mlflow.settings import DEFAULT_MODEL_NAME, InspectSettings
from hpt_mlflow.stages.inspection_features import alike_pairs
from hpt_mlflow.stages.progress import show_steps
from hpt_mlflow.stages.result import StageResult
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.addresses import concrete_uri
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.runs.stage_run import StageRun, stage_run

STAGE = "inspect"
PAGE = "inspection.html"
# Larger tables of thumbnails are kept in a temporary file.
MEMORY_BYTES = 1 << 30
# Rows of the table of near copies.
MOST_ROWS = 10_000


@takes(InspectSettings)
def inspect(chosen: InspectSettings) -> StageResult:
    """Look at every image of some datasets, and show what was found on a page.

    Returns:
        The counts: images, left out, unreadable, blank and saturated ones, near copies, test images with a near copy
        among what is trained on.

    Raises:
        HptError: there is no such dataset or model, or a file cannot be written.
    """
    datasets = [open_dataset(address, chosen.root) for address in chosen.addresses]
    if chosen.near or chosen.model:
        check_can_search(sum(map(len, datasets)))
    _check_files(chosen, datasets)
    uri = None
    if chosen.model:
        connect()
        uri = concrete_uri(chosen.model, "model", DEFAULT_MODEL_NAME)
    with tempfile.TemporaryDirectory() as folder:
        surveys, thumbnails = _surveys(chosen, datasets, Path(folder))
        near = _near(surveys, thumbnails) if chosen.near else None
        alike = alike_pairs(chosen, uri, surveys, near, Path(folder)) if uri else None
    findings = Findings(surveys, near, alike)
    page = inspection_page(findings, _command(chosen), uri)
    if chosen.page:
        _write(chosen.page, page, "page")
    to_train_on = findings.to_train_on() if chosen.list_to else []
    if chosen.list_to:
        _write(chosen.list_to, "".join(f"{_path(place)}\n" for place in to_train_on), "list_to")
    metrics = findings.metrics() | ({"inspect/listed": float(len(to_train_on))} if chosen.list_to else {})
    connect()
    names = tuple(dataset.name for dataset in datasets)
    with stage_run(f"{STAGE} {', '.join(names)}") as run:
        run.tags({tag.STAGE: STAGE, tag.DATASET_DIGEST: ", ".join(dataset.digest for dataset in datasets)})
        run.params(asdict(chosen) | ({"model": uri} if uri else {}))
        run.metrics(metrics, 0)
        run.text(page, PAGE)
        _log_pairs(run, findings)
        run.describe(_card(names, metrics))
    return StageResult(run.run_id, uri or "", names, metrics)


def _command(chosen: InspectSettings) -> str:
    """The command of this inspection, without options that have their default."""
    given = {entry.name: getattr(chosen, entry.name) for entry in fields(chosen)}
    changed = {entry.name: given[entry.name] for entry in fields(chosen) if given[entry.name] != entry.default}
    return stage_command(
        STAGE,
        **{name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in changed.items()},
    )


def _check_files(chosen: InspectSettings, datasets: Sequence[Dataset]) -> None:
    """
    Raises:
        HptError: a file to write cannot be there, or images of a dataset are not files, which a list could name.
    """
    for setting in ("page", "list_to"):
        file = getattr(chosen, setting)
        if file and not Path(file).expanduser().resolve().parent.is_dir():
            raise HptError(f"there is no folder for {printable(file)}", "make it first", setting=setting)
    for dataset in datasets if chosen.list_to else ():
        if not isinstance(dataset.pictures, Files) and not isinstance(dataset.pictures[0], Path):
            problem = f"images of {dataset.uri} are not files, which a list could name"
            raise HptError(problem, "inspect it without --list-to", setting="list_to")


def _surveys(chosen: InspectSettings, datasets: Sequence[Dataset], folder: Path) -> tuple[list[Survey], np.ndarray]:
    """Look at all datasets; gives the table of their thumbnails, too, uint8 (M, S, S, 3)."""
    total = sum(map(len, datasets))
    shape = (total, SIDE, SIDE, 3)
    is_large = total * SIDE * SIDE * 3 > MEMORY_BYTES
    thumbnails = (
        np.memmap(folder / "thumbnails", np.uint8, "w+", shape=shape) if is_large else np.zeros(shape, np.uint8)
    )
    surveys, first = [], 0
    for dataset in datasets:
        show = show_steps(f"{STAGE} {dataset.name}: images")
        split = dataset.split(chosen.split_seed)
        surveys.append(survey(dataset, split, thumbnails, first, chosen.workers, show))
        first += len(dataset)
    return surveys, thumbnails


def _near(surveys: Sequence[Survey], thumbnails: np.ndarray) -> NearPairs:
    """The near copies among all images that show something; blank ones look all the same."""
    compared = np.concatenate([survey.first + survey.shown for survey in surveys])
    return near_pairs(thumbnails, compared, show_steps(f"{STAGE}: near copies"))


def _path(place: Place) -> str:
    picture = place.survey.dataset.pictures[place.number]
    # One of several images in a file is named as a list names it.
    file, number = (picture.file, f"#{picture.number}") if isinstance(picture, Frame) else (Path(str(picture)), "")
    path = f"{file.absolute()}{number}"
    if len(path.splitlines()) > 1 or "\t" in path:
        problem = f"a list cannot name {printable(path)!r}, which has a tab or a line break in its name"
        raise HptError(problem, "rename the file", setting="list_to")
    return path


def _write(file: str, text: str, setting: str) -> None:
    path = Path(file).expanduser().resolve()
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        problem = f"{printable(file)} cannot be written ({error.strerror or one_line(error)})"
        raise HptError(problem, setting=setting) from error


def _log_pairs(run: StageRun, findings: Findings) -> None:
    """Log the near copies as a table, the worst first."""
    columns: dict[str, list[object]] = {"where": [], "image": [], "copy": [], "how": [], "difference": []}
    for where, pairs in findings.by_relation(findings.near).items() if findings.near is not None else ():
        for row in np.argsort(pairs.difference, kind="stable").tolist():
            one, other = findings.place(int(pairs.one[row])), findings.place(int(pairs.other[row]))
            names = [
                f"{place.survey.dataset.name}: {place.survey.dataset.names[place.number]}" for place in (one, other)
            ]
            values = (where, *map(printable, names), pairs.how(row), round(float(pairs.difference[row]), 4))
            for column, value in zip(columns.values(), values, strict=True):
                column.append(value)
    if columns["where"]:
        run.table({name: values[:MOST_ROWS] for name, values in columns.items()}, "near_copies.json")


def _card(names: Sequence[str], metrics: dict[str, float]) -> str:
    counts = "\n".join(
        f"- {name.removeprefix('inspect/').replace('_', ' ')}: {value:,.0f}" for name, value in metrics.items()
    )
    return f"**Inspection of** {', '.join(names)}\n\n{counts}\n\nPictures are on `{PAGE}` among the artifacts."

"""The kinds of entries that a spool holds, and their delivery to MLflow.

Every delivery can be repeated: MLflow is not sent what it has already. So an entry whose delivery was cut off, or got
no answer, is simply delivered again. The fields of a class are the JSON of its entries on users' disks: a new field
needs a default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.delivery.content import Content
from hpt_mlflow.tracking.delivery.model_entries import Alias, Model, Version
from hpt_mlflow.tracking.delivery.run_client import RunClient
from hpt_mlflow.tracking.delivery.run_entries import End, Files, Metrics, Params, State, Tags
from hpt_mlflow.tracking.delivery.spool import Entry

CONTENTS: Mapping[str, type[Content]] = {
    content.kind: content for content in (Metrics, Params, Tags, Files, State, Model, Version, Alias, End)
}


def content_of(entry: Entry) -> Content:
    """What an entry contains.

    Raises:
        HptError: another version of this package has written it.
    """
    try:
        return CONTENTS[entry.kind].read(entry.payload)
    except (KeyError, TypeError) as error:
        raise HptError(f"this version of hpt_mlflow cannot read {entry.kind!r} from the spool") from error


def describe(entry: Entry) -> str:
    """What an entry is called in a message."""
    try:
        return str(content_of(entry))
    except HptError:
        return entry.kind


def deliver(run: RunClient, entries: Sequence[Entry]) -> str:
    """Deliver one entry, or several of metrics; gives the address of a registered version, or nothing.

    Raises whatever MLflow, its client's libraries and the file system do.
    """
    content, folder = content_of(entries[0]), entries[0].folder
    if content.has_files and folder is None:
        raise HptError(f"the files of entry {entries[0].number} are gone from the spool")
    if isinstance(content, Metrics):
        content = Metrics([metric for entry in entries for metric in entry.payload["metrics"]])
    return content.deliver(run, folder or Path()) or ""

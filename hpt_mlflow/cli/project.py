"""The entry points of the MLflow Project: the commands of `hpt`, started in the folder that the user stands in.

MLflow starts an entry point in the folder of the project, or in a temporary checkout of it, and passes on nothing of
where it was called. There a relative path would name the project's own files.
"""

from __future__ import annotations

import os
import re
import sys
from itertools import pairwise
from pathlib import Path

from hpt_mlflow.cli import hpt
from hpt_mlflow.report.commands import PROJECT_VARIABLE
from hpt_mlflow.tracking.project import project_command

RUN_VARIABLE = "MLFLOW_RUN_ID"
PARENT = re.compile(r"^PPid:\s*(\d+)", re.MULTILINE)
# Options that name files or folders.
PATHS = ("--data", "--base", "--source", "--target", "--weights", "--storage", "--root")
SCHEMES = r"(?:folder|list|csv|shards|journal):"
ROOT = re.compile(r"\?root=([^&]*)")


def run_entry_point(stage: str) -> None:
    """Run a stage with the words of this process, in the folder that `mlflow run` was called in."""
    run_id = os.environ.get(RUN_VARIABLE)
    if run_id:
        folder = calling_folder(os.getpid(), run_id)
        if folder is not None:
            os.chdir(folder)
        elif relative := relative_options(sys.argv[1:]):
            name, value = relative[0]
            sys.exit(
                f"Error: {name}: {value!r} is relative, and MLflow does not say to which folder; give the whole path, "
                f'such as -P {name}="$PWD/{value}"'
            )
        os.environ[PROJECT_VARIABLE] = project_command(run_id)
    hpt([stage, *sys.argv[1:]])


def calling_folder(process: int, run_id: str, processes: Path = Path("/proc")) -> Path | None:
    """The working directory of the `mlflow run` that has started a process; None where it cannot be found out.

    It is that of the nearest ancestor that does not know the run: the shells in between do.

    Args:
        run_id: of the run that MLflow has made for the process.
        processes: where Linux shows processes.
    """
    mark = f"{RUN_VARIABLE}={run_id}".encode()
    try:
        while True:
            match = PARENT.search((processes / str(process) / "status").read_text())
            if match is None or int(match[1]) <= 1:
                return None
            process = int(match[1])
            if mark not in (processes / str(process) / "environ").read_bytes().split(b"\0"):
                return Path(os.readlink(processes / str(process) / "cwd"))
    except OSError:
        return None


def relative_options(words: list[str]) -> list[tuple[str, str]]:
    """Names and values of the options that name a relative path."""
    return [
        (option.removeprefix("--"), value)
        for option, value in pairwise(words)
        if option in PATHS and is_relative(value)
    ]


def is_relative(address: str) -> bool:
    """Whether an address, of a dataset or a file, names something that depends on the working directory."""
    root = ROOT.search(address)
    if root:
        return not _is_absolute(root[1])
    if address.startswith("sqlite:///"):
        return not address.startswith("sqlite:////")
    path = re.sub(rf"^{SCHEMES}", "", address)
    if not path or (":" in path and not path.startswith((".", "/", "~")) and not os.path.exists(path)):
        return False  # builtin:, paper:, torchvision:, a database, or nothing
    return not all(_is_absolute(part) for part in path.split("::"))


def _is_absolute(path: str) -> bool:
    return os.path.isabs(os.path.expanduser(path))

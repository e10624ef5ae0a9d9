"""Other Python processes that run this package: how they find it, and how they are started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpt_mlflow.errors import HptError, one_line

PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
RETRY_SECONDS = 0.2


def import_variables() -> dict[str, str]:
    """Variables that let another Python import this package, and nothing from the folder that it is started in.

    `python -m` would look there first: a random.py of the user's would be executed. Python 3.10 cannot leave it out.
    """
    variables = {"PYTHONSAFEPATH": "1"}
    # A folder of installed packages would come before Python's own modules.
    if PACKAGE_FOLDER.name not in ("site-packages", "dist-packages"):
        paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        absolute = dict.fromkeys([str(PACKAGE_FOLDER), *map(os.path.abspath, paths)])
        variables["PYTHONPATH"] = os.pathsep.join(absolute)
    return variables


def start_python(
    module: str, *arguments: str, variables: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Start a module of this package in another process. Where the system fails to, it is tried once more.

    Args:
        variables: the environment of the process, to which `import_variables` are added. Default: this process's.
        options: see `subprocess.Popen`.

    Raises:
        HptError: it cannot be started.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**(os.environ if variables is None else variables), **import_variables()}
    try:
        return subprocess.Popen(command, env=environment, **options)
    except OSError:
        time.sleep(RETRY_SECONDS)
    try:
        return subprocess.Popen(command, env=environment, **options)
    except OSError as error:
        raise HptError(
            f"cannot start another process ({one_line(error)})",
            "check free memory and the limit of processes (ulimit -u)",
        ) from error

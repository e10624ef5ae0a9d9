"""A process that runs one stage: the job of a study, or one of the processes of a training."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hpt_mlflow.stages import STAGES
from hpt_mlflow.stages.processes.children import be_child


def _run_stage(job: Mapping[str, Any]) -> dict[str, Any] | None:
    result = STAGES[job["stage"]](**job["settings"])
    return asdict(result) if result else None


if __name__ == "__main__":
    sys.exit(be_child(_run_stage))

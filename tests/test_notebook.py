"""docs/notebook.ipynb works from its first cell to its last, and shows outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
LARGEST_BYTES = 200_000


def test_the_notebook_is_executed_and_small():
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell["outputs"]) for cell in cells) > len(cells) // 2
    assert NOTEBOOK.stat().st_size < LARGEST_BYTES


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    variables = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "HPT_CACHE": str(tmp_path / "cache")}
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        variables.pop(name, None)
    words = [sys.executable, str(ROOT / "tests" / "notebook.py"), str(NOTEBOOK)]
    done = subprocess.run(words, check=False, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

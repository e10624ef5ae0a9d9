import ast
import re
import subprocess
import sys
from pathlib import Path

from hpt_mlflow.tracking import tags as tag

ROOT = Path(__file__).parents[2]
KNOWN = {value for value in vars(tag).values() if isinstance(value, str) and re.match(r"(hpt|mlflow)\.", value)}
TAG = re.compile(r"(?:hpt|mlflow)\.[a-zA-Z_.]*[a-zA-Z_]")


def texts(file):
    """The texts of a module that are one tag, but for docstrings."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TAG.fullmatch(node.value):
            yield node.value


def test_tags_are_spelled_in_one_module():
    files = [file for folder in ("tracking", "stages") for file in (ROOT / "hpt_mlflow" / folder).rglob("*.py")]
    elsewhere = {str(file): list(texts(file)) for file in files if file.name != "tags.py"}
    assert len(files) > 30
    assert not {file: found for file, found in elsewhere.items() if found}


def test_docs_name_only_tags_that_exist():
    named = {
        name for file in (ROOT / "docs").glob("*.md") for name in re.findall(r"`(hpt\.[a-z_0-9]+)`", file.read_text())
    }
    assert "hpt.stage" in named
    assert named <= KNOWN


def test_names_are_at_hand_without_mlflow():
    code = "import sys, hpt_mlflow.tracking.tags; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

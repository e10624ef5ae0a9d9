"""README, CONTRIBUTING and docs/ as tests read them: their code blocks, the commands in these, and their links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("", "bash", "sh")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command `hpt ...` and `mlflow run ...` in a page, in shell blocks and in running text."""
    for language, code in FENCE.findall(text):
        if language in SHELL:
            for line in code.replace("\\\n", " ").splitlines():
                yield from _commands_of(line)
    for code in re.findall(r"`((?:hpt|mlflow\s+run)\s[^`]+)`", FENCE.sub("", text)):
        yield from _commands_of(code)


def _commands_of(line: str) -> Iterator[list[str]]:
    """The words from `hpt` or `mlflow run` on, up to what the shell takes for itself."""
    words = shlex.split(line, comments=True)
    for start, word in enumerate(words):
        if Path(word).name == "hpt" or (Path(word).name == "mlflow" and words[start + 1 : start + 2] == ["run"]):
            rest = words[start + 1 :]
            end = next((i for i, word in enumerate(rest) if word in ("|", ">", ";", "&&")), len(rest))
            yield [Path(word).name, *rest[:end]]
            return


def broken_links(page: Path) -> list[str]:
    """Relative links of a page to a file or a heading that does not exist."""
    targets = re.findall(r"\]\(([^)#\s:]*)(#[\w-]+)?\)", FENCE.sub("", page.read_text()))
    return [
        name + anchor for name, anchor in targets if not _leads_somewhere(page.parent / name if name else page, anchor)
    ]


def _leads_somewhere(file: Path, anchor: str) -> bool:
    if not anchor:
        return file.exists()
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", file.read_text()), re.MULTILINE) if file.is_file() else []
    return anchor in {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def write_examples(folder: Path) -> None:
    """Write the examples of docs/extending.md into a folder as the package my_package, as pip would install it.

    A block of code is a file if its first line is its path, as in `# my_package/method.py`.
    """
    page = (ROOT / "docs" / "extending.md").read_text()
    info = folder / "my_package-1.dist-info"
    for made in (folder / "my_package", info):
        made.mkdir(parents=True)
    for code in (code for _, code in FENCE.findall(page)):
        if name := re.match(r"# (my_package/\w+\.py)\n", code):
            (folder / name[1]).write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    points = re.findall(r'^\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "([\w.:]+)"$', page, re.MULTILINE)
    assert {group for group, _, _ in points} == {f"hpt_mlflow.{kind}" for kind in ("plugins", "stages", "sources")}
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{name} = {place}\n" for group, name, place in points))

"""What was found in datasets as one HTML file with all its pictures inside."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.errors import printable
from hpt_mlflow.inspection.findings import Findings, Place, class_counts, size_counts
from hpt_mlflow.inspection.near import NearPairs
from hpt_mlflow.inspection.survey import Survey
from hpt_mlflow.pixels import shown

# Longer side of a picture on the page, and how many are shown of each finding.
PIXELS = 112
MOST_PAIRS, MOST_IMAGES, MOST_ROWS = 60, 48, 40
NONE = "<p>None.</p>"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .3rem; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid #ddd; } td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.grid { display: flex; flex-wrap: wrap; gap: .8rem; } figure { margin: 0; max-width: 16rem; font-size: 12px; }
figure img { border: 1px solid #ddd; margin-right: 2px; image-rendering: auto; }
figcaption { overflow-wrap: anywhere; color: #444; line-height: 1.3; }
.bar { background: #0072B2; height: .8rem; } .note { color: #666; font-size: 14px; }
"""


def inspection_page(findings: Findings, command: str, model: str | None) -> str:
    """The page.

    Args:
        command: that makes it again.
        model: address of the model whose features were compared.
    """
    names = ", ".join(survey.dataset.name for survey in findings.surveys)
    parts = [f"<h1>{_text(f'Inspection of {names}')}</h1>", _overview(findings.surveys), _skipped(findings.surveys)]
    if findings.near is not None:
        intro = (
            "The same picture re-encoded, resized, slightly cropped or mirrored. Below each pair: in what it differs, "
            "and by how much (root mean square, in standard deviations of the picture)."
        )
        parts += ["<h2>Near copies</h2>", f'<p class="note">{intro}</p>', *_pairs(findings, findings.near)]
    if findings.alike is not None:
        parts += [f"<h2>Alike by features of {_text(model or '')}</h2>"]
        parts += [
            '<p class="note">Below each pair: 1 - cosine.</p>',
            *_pairs(findings, findings.alike, by_pixels=False),
        ]
    for title, field in (("Blank images", "blank"), ("Nearly all black or white", "saturated")):
        parts += [f"<h2>{title}</h2>", _images(findings.surveys, field)]
    parts += ["<h2>Classes</h2>", *map(_classes, findings.surveys)]
    parts += [f"<h2>To repeat it</h2><p><code>{_text(command)}</code></p>"]
    head = f'<meta charset="utf-8"><title>{_text(f"Inspection of {names}")}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def _overview(surveys: Sequence[Survey]) -> str:
    head = ("dataset", "images", "train, validation, test", "sizes", "format, mode, depth")
    rows = []
    for survey in surveys:
        split = survey.split
        parts = f"{len(split.train):,}, {len(split.validation):,}, {len(split.test):,}"
        sides = survey.sizes[survey.readable]
        span = ""
        if len(sides):
            (low, middle, high) = (np.percentile(sides, share, axis=0, method="nearest") for share in (0, 50, 100))
            span = f" ({low[0]} to {high[0]} wide, {low[1]} to {high[1]} high, median {middle[0]} x {middle[1]})"
        sizes = _counts(size_counts(survey).most_common(3)) + span
        rows.append(
            (survey.dataset.name, f"{len(survey.dataset):,}", parts, sizes, _counts(survey.kinds.most_common(8)))
        )
    return _table(head, rows)


def _skipped(surveys: Sequence[Survey]) -> str:
    rows = [(survey.dataset.name, str(entry)) for survey in surveys for entry in survey.dataset.left_out]
    for survey in surveys:
        by_reason: dict[str, list[int]] = defaultdict(list)
        for index, reason in survey.unreadable.items():
            by_reason[reason].append(index)
        for reason, indices in sorted(by_reason.items(), key=lambda entry: -len(entry[1])):
            examples = ", ".join(_name(Place(survey, index)) for index in indices[:5])
            rows.append((survey.dataset.name, f"{len(indices)} unreadable ({examples}): {reason}"))
    more = f'<p class="note">{len(rows) - MOST_ROWS} more rows are not shown.</p>' if len(rows) > MOST_ROWS else ""
    shown = _table(("dataset", "what would be skipped, and why"), rows[:MOST_ROWS]) if rows else NONE
    return f"<h2>Skipped</h2>{shown}{more}"


def _pairs(findings: Findings, pairs: NearPairs, by_pixels: bool = True) -> Iterable[str]:
    if not len(pairs):
        yield NONE
    for title, some in findings.by_relation(pairs).items():
        yield f"<h3>{_text(title[0].upper() + title[1:])}: {len(some):,} {'pair' if len(some) == 1 else 'pairs'}</h3>"
        rows = np.argsort(some.difference, kind="stable")
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST_PAIRS, len(rows))).astype(int))]
        if len(rows) < len(some):
            yield f'<p class="note">{len(rows)} of them, from the most to the least alike.</p>'
        yield '<div class="grid">'
        for row in rows.tolist():
            one, other = findings.place(int(some.one[row])), findings.place(int(some.other[row]))
            how = f"{some.how(row)}, {some.difference[row]:.2f}" if by_pixels else f"{some.difference[row]:.3f}"
            yield _figure([one, other], f"<b>{_text(how)}</b><br>{_text(_name(one))}<br>{_text(_name(other))}")
        yield "</div>"


def _images(surveys: Sequence[Survey], field: str) -> str:
    parts = []
    for survey in surveys:
        indices = getattr(survey, field)
        if len(indices):
            places = [Place(survey, int(index)) for index in indices[:MOST_IMAGES]]
            figures = "".join(_figure([place], _text(_name(place))) for place in places)
            parts.append(f'<h3>{_text(survey.dataset.name)}: {len(indices):,}</h3><div class="grid">{figures}</div>')
    return "".join(parts) or NONE


def _classes(survey: Survey) -> str:
    counts = class_counts(survey)
    title = f"<h3>{_text(survey.dataset.name)}</h3>"
    if not counts:
        why = f": {survey.dataset.unlabelled_because}" if survey.dataset.unlabelled_because else ""
        return f"{title}<p>No labels{_text(why)}.</p>"
    most, fewest = counts[0][1], counts[-1][1]
    ratio = f", {most / fewest:.3g} times as many in the largest as in the smallest" if fewest else ""
    rows = "".join(
        f'<tr><td>{_text(name)}</td><td>{count:,}</td><td style="width:20rem">'
        f'<div class="bar" style="width:{100 * count / max(1, most):.1f}%"></div></td></tr>'
        for name, count in counts[:MOST_ROWS]
    )
    more = (
        f'<p class="note">{len(counts) - MOST_ROWS} smaller ones are not shown.</p>' if len(counts) > MOST_ROWS else ""
    )
    return f'{title}<p class="note">{len(counts)} classes{ratio}.</p><table>{rows}</table>{more}'


def _figure(places: Sequence[Place], caption: str) -> str:
    return f"<figure>{''.join(map(_picture, places))}<figcaption>{caption}</figcaption></figure>"


def _picture(place: Place) -> str:
    """The image inside of the page."""
    survey = place.survey
    try:
        image = Image.fromarray(shown(decode(survey.dataset.pictures[place.number], PIXELS, survey.pixels)))
    except UnreadableImageError:
        return ""
    image.thumbnail((PIXELS, PIXELS))
    encoded = io.BytesIO()
    image.save(encoded, "WEBP", quality=85)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<img width="{image.width}" height="{image.height}" alt="" src="data:image/webp;base64,{data}">'


def _name(place: Place) -> str:
    return str(place.survey.dataset.names[place.number])


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} of {what}" for what, count in counts)


def _text(text: str) -> str:
    return escape(printable(text))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    first = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    others = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{first}</tr>{others}</table>"

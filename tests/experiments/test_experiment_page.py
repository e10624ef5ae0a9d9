from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from imagined import FOUR, claims, figure, imagined, markdown, of_each_study, page

from hpt_mlflow.experiments import STUDIES
from hpt_mlflow.experiments.claims import HELD, NOT_SHOWN, OPPOSITE
from hpt_mlflow.experiments.page import Origin, figure_as_svg, study_csv

EVIL = "<b>x</b>&\"'<script>alert(1)</script>"
VOID = {"meta", "br"}


def origin(name="digits", **more):
    said = {
        "chain": ["mnist", name],
        "command": f"hpt study --target '{name}'",
        "settings": {"target": name, "seeds": "3"},
        "runs": [(f"pretrain {name}, seed 0", "0123abcd", True), ("adapt x, seed 0", f"run-{name}", False)],
        "experiment_id": "7",
        "machine": f"a {name} processor, 2 cores",
        "hours": 1.26,
    }
    return Origin(**said | more)


class Page(HTMLParser):
    """Elements with their attributes; the text of each, without that of others in it; rows of tables."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.tables = [], [], {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open:
            self.texts[self.open[-1]][-1] += text
            if self.open[-1] in ("td", "th"):
                self.tables[-1][-1][-1] += text


@pytest.fixture(scope="module")
def pages():
    return {study: page(results, origin()) for study, results in of_each_study().items()}


@pytest.mark.parametrize("study", STUDIES)
def test_the_page_is_one_document_that_needs_nothing_else(pages, study):
    text = pages[study]
    shown = Page(text)
    assert text.startswith("<!doctype html><html")
    assert text.count("<html") == text.count("<body") == text.count("<svg") == text.count("<h1>") == 1
    assert {"charset": "utf-8"} in [attributes for tag, attributes in shown.elements if tag == "meta"]
    assert "<?xml" not in text
    assert "<!DOCTYPE" not in text
    tags = {tag for tag, _ in shown.elements}
    assert not tags & {"script", "link", "img", "image", "iframe", "object", "embed", "base", "foreignobject"}
    for _, attributes in shown.elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "data", "action", "background")
            assert not name.startswith("on")
            assert "href" not in name or value.startswith("#")
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?(.)", text))
    # What the figure refers to is in it.
    ids = {attributes["id"] for _, attributes in shown.elements if "id" in attributes}
    assert {href for _, a in shown.elements if (href := a.get("xlink:href"))} <= {f"#{name}" for name in ids}


@pytest.mark.parametrize("study", STUDIES)
def test_the_page_has_every_claim_with_its_verdict(pages, study):
    shown, expected = Page(pages[study]), claims(of_each_study()[study])
    assert shown.texts["li"] == expected
    looks = [attributes["class"] for tag, attributes in shown.elements if tag == "li"]
    verdicts = {", held.": "held", ", the opposite.": "opposite"}
    assert looks == [next((v for end, v in verdicts.items() if text.endswith(end)), "not") for text in expected]
    # Where the paper claims nothing there is no verdict.
    assert all(look == "not" for look, text in zip(looks, expected, strict=True) if " minus an " in text)


def test_each_verdict_has_a_look_of_its_own():
    flat = [0.5, 0.5, 0.5]
    figures = {"HPT": flat, "Target": [0.39, 0.4, 0.41], "Base": [0.4, 0.5, 0.6], "HPT-BN": [0.59, 0.6, 0.61]}
    text = page(imagined("semi-supervised", {(m, "20"): f for m, f in figures.items()}), origin())
    looks = [attributes["class"] for tag, attributes in Page(text).elements if tag == "li"]
    assert looks == ["held", "not", "opposite"]
    assert all(f".{look} {{ color:" in text for look in looks)


@pytest.mark.parametrize("study", STUDIES)
def test_verdicts_are_explained(pages, study):
    explained = next(text for text in Page(pages[study]).texts["p"] if text.startswith("Differences"))
    # The paper compares no methods of training.
    said = () if study == "methods" else (HELD, NOT_SHOWN, OPPOSITE)
    assert all(verdict in explained.lower() for verdict in said)
    assert "95% interval by Student's t" in explained


@pytest.mark.parametrize("study", STUDIES)
def test_the_same_results_make_the_same_page(pages, study):
    assert page(of_each_study()[study], origin()) == pages[study]


HEADS = {
    "separability": ["%"],
    "semi-supervised": ["20 labels", "100% of the labels"],
    "sequential": ["%"],
    "augmentation": ["crop,color,gray,blur,flip", "crop,color,blur,flip", "crop", "none"],
    "data-amount": ["1% of the images", "50% of the images", "100% of the images"],
    "methods": ["%", "last training, s"],
}


def percent(found):
    if found is None:
        return ""
    return f"{100 * found.value:.1f}" + (f" [{100 * found.low:.1f}, {100 * found.high:.1f}]" if found.is_known else "")


@pytest.mark.parametrize("study", STUDIES)
def test_the_page_has_every_mean(pages, study):
    results = of_each_study()[study]
    (head, *rows), *_ = Page(pages[study]).tables
    assert head == ["method", *HEADS[study]]
    expected = [[m, *(percent(results.mean(m, c)) for c in results.conditions)] for m in results.methods]
    if study == "methods":
        expected = [[*row, {"byol": "93"}.get(row[0], "")] for row in expected]
    elif study != "semi-supervised":
        # Of 28, 30 and 32.
        expected.append(["untrained network", *["30.0 [25.0, 35.0]"] * len(results.conditions)])
    assert rows == expected


def test_means_by_hand_and_where_there_is_none():
    figures = {("HPT", "20"): [0.5, 0.52, 0.54], ("HPT", "40"): [0.61234], ("Base", "40"): [0.3]}
    (_, *rows), *_ = Page(page(imagined("semi-supervised", figures, metric="auroc"), origin())).tables
    assert rows == [["HPT", "52.0 [47.0, 57.0]", "61.2"], ["Base", "", "30.0"]]


@pytest.mark.parametrize(("metric", "name"), [("accuracy", "test top-1, %"), ("auroc", "mean test AUROC, %")])
def test_the_heading_names_the_metric_and_the_step(metric, name):
    shown = Page(page(imagined("sequential", {"B": [0.5]}, metric=metric), origin()))
    assert f"Means after the last step: {name}" in shown.texts["h2"]


def test_the_page_says_where_it_comes_from():
    shown = Page(page(of_each_study()["sequential"], origin()))
    _, settings, runs = shown.tables
    assert settings == [["setting", "value"], ["seeds", "3"], ["target", "digits"]]
    assert runs == [
        ["stage", "run", "made"],
        ["pretrain digits, seed 0", "0123abcd", "before"],
        ["adapt x, seed 0", "run-digits", "here"],
    ]
    assert shown.texts["code"] == ["hpt study --target 'digits'"]
    assert shown.texts["h1"] == shown.texts["title"][:1] == ["Which stages, in a row, are best: mnist > digits"]
    made = "2 stages, 1 of them reused; 1.3 hours from .*, on a digits processor, 2 cores."
    assert any(re.fullmatch(made, text) for text in shown.texts["p"])


def test_what_users_name_is_text_and_nothing_else():
    text = page(of_each_study()["separability"], origin(EVIL))
    shown = Page(text)
    assert not {"b", "script"} & {tag for tag, _ in shown.elements}
    assert "<b>" not in text
    assert "<script" not in text
    assert shown.texts["h1"] == shown.texts["title"][:1] == [f"How good features become, and how soon: mnist > {EVIL}"]
    assert shown.texts["code"] == [f"hpt study --target '{EVIL}'"]
    _, settings, runs = shown.tables
    assert ["target", EVIL] in settings
    assert [row[:2] for row in runs[1:]] == [
        [f"pretrain {EVIL}, seed 0", "0123abcd"],
        ["adapt x, seed 0", f"run-{EVIL}"],
    ]
    assert "&amp;" in text


def test_names_of_settings_are_text_as_well():
    shown = Page(page(of_each_study()["separability"], origin(settings={EVIL: EVIL})))
    assert shown.tables[1] == [["setting", "value"], [EVIL, EVIL]]


def test_the_figure_is_an_element_alone():
    text = figure_as_svg(figure(of_each_study()["sequential"]))
    assert text.startswith("<svg")
    assert text.rstrip().endswith("</svg>")
    assert "<dc:date>" not in text


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("study", STUDIES)
def test_the_table_has_every_figure(study, seeds):
    results = of_each_study(seeds)[study]
    rows = list(csv.DictReader(io.StringIO(study_csv(results))))
    assert {row["study"] for row in rows} == {study}
    figures, untrained = {}, {}
    for row in rows:
        seed, step, value = int(row["seed"]), int(row["step"]), float(row["test_accuracy"])
        if row["method"] == "untrained":
            assert (row["condition"], step) == ("", 0)
            untrained[seed] = value
        else:
            by_steps = figures.setdefault((row["method"], row["condition"], seed), {})
            assert step not in by_steps
            by_steps[step] = value
    # To the last bit.
    assert figures == results.scores
    assert untrained == results.untrained
    assert len(rows) == sum(map(len, results.scores.values())) + len(results.untrained)


def test_the_table_names_the_metric_and_has_steps_in_their_order():
    text = study_csv(imagined("separability", {"HPT": [{20: 0.5, 3: 0.25}]}, [0.125], metric="auroc"))
    assert text == (
        "study,method,condition,seed,step,test_auroc\n"
        "separability,HPT,,0,3,0.25\n"
        "separability,HPT,,0,20,0.5\n"
        "separability,untrained,,0,0,0.125\n"
    )


@pytest.mark.parametrize("study", STUDIES)
def test_the_description_has_the_chain_the_claims_and_the_command(study):
    results = of_each_study()[study]
    text = markdown(results, origin())
    assert "**Chain** mnist > digits" in text
    assert f"**Study** {study}: " in text
    assert [line[2:] for line in text.splitlines() if line.startswith("- ")][:-1] == claims(results)
    assert "```\nhpt study --target 'digits'\n```" in text


def test_the_description_links_runs_that_were_made_before():
    made = [("pretrain my_[set]*", "0123", True), ("adapt x, seed 0", "4567", False), ("evaluate y", "89ab", True)]
    text = markdown(of_each_study()["sequential"], origin(runs=made))
    _, links = text.split("**Reused**\n\n")
    assert links.splitlines() == [
        r"- [pretrain my\_\[set\]\*](#/experiments/7/runs/0123)",
        "- [evaluate y](#/experiments/7/runs/89ab)",
    ]
    assert "Reused" not in markdown(of_each_study()["sequential"], origin(runs=made[1:2]))


def test_of_one_seed_the_page_has_means_without_intervals():
    text = page(imagined("separability", {method: [0.5] for method in FOUR}), origin())
    (_, *rows), *_ = Page(text).tables
    assert rows == [[method, "50.0"] for method in FOUR]
    assert not re.search(r"\bnan\b", text)

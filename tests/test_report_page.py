"""The page of an evaluation: what stands on it, that it is whole, and that everybody can read it."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_data import NAMES, TREE, score, write_evaluation

from monai_skelrec import page as paper
from monai_skelrec import report_page
from monai_skelrec.measures import MEASURES
from monai_skelrec.report_page import write_report
from monai_skelrec.scores import CONVENTIONS


class Outline(HTMLParser):
    """Tags with their attributes, in order, whether they close, and the text of the page without scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def of(self, *tags):
        return [(tag, attributes) for tag, attributes in self.tags if tag in tags]

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.words))


def report(root, **options):
    arguments = write_evaluation(root)
    scores = score(arguments)
    return write_report(scores, **{**arguments, **options}).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    text = report(tmp_path_factory.mktemp("report"), about={"task": "trees", "weights": "run/model.pt"}, pictures=2)
    return text, Outline(text)


# --- content ---------------------------------------------------------------------------------------------------------


def test_failed_cases_stand_first_with_their_reason(made):
    text, outline = made
    sections = [attributes["id"] for _, attributes in outline.of("section")]
    assert sections == ["failed", "glance", "about", "summary", "plots", "worst", "cases", "conventions"]
    assert "<i>absent" in outline.text and "The prediction is missing" in outline.text


def test_no_failure_no_section(tmp_path):
    arguments = write_evaluation(tmp_path, {"fine": TREE})
    text = write_report(score(arguments), **arguments).read_text(encoding="utf-8")
    assert 'id="failed"' not in text and "1 case scored." in text


def test_what_was_evaluated_is_said(made):
    _, outline = made
    for words in ("Evaluation: trees", "run/model.pt", "monai", "UTC", "Command"):
        assert words in outline.text


def test_numbers_are_those_of_the_tables(tmp_path):
    arguments = write_evaluation(tmp_path)
    scores = score(arguments)
    outline = Outline(write_report(scores, **arguments, pictures=0).read_text(encoding="utf-8"))
    for row in scores.summary:
        assert f"{row['dice_mean']:.3f} ± {row['dice_std']:.3f}" in outline.text


def test_every_measure_and_its_convention_are_printed(made):
    _, outline = made
    for measure in ("dice", "centerline_dice", "betti0_error"):
        assert MEASURES[measure].convention[1:] in outline.text
    for how in CONVENTIONS.values():
        assert how[1:] in outline.text


def test_worst_cases_come_first(made):
    _, outline = made
    worst = outline.text[outline.text.index("Each case seen as a whole") :]
    assert worst.index("gone") < worst.index("cut & sewn")
    table = outline.text[outline.text.index("Mean over the classes of each case") :]
    assert table.index("gone") < table.index("cut & sewn") < table.index("fine")


def test_pictures_describe_themselves(made):
    _, outline = made
    alts = [attributes["alt"] for _, attributes in outline.of("img")]
    pictures = [alt for alt in alts if ", case " in alt]
    assert len(pictures) == 2 * 6  # image, reference and prediction, whole and as a slice, of two cases
    cut = next(alt for alt in pictures if alt.startswith("Prediction, case cut & sewn"))
    assert "trunk, branch, <b>twig</b>" in cut and "1 break and 0 false merges" in cut
    assert any(alt.startswith("Box plot of Dice for 3 classes") for alt in alts)
    assert any(alt.startswith("clDice against Dice, 9 points") for alt in alts)


def test_number_and_size_of_pictures_are_bounded(tmp_path):
    for count, pixels in ((0, 200), (1, 200), (9, 100)):
        images = Outline(report(tmp_path / str(count), pictures=count, pixels=pixels)).of("img")
        pngs = [attributes["src"] for _, attributes in images if attributes["src"].startswith("data:image/png")]
        assert len(pngs) == 6 * min(count, 3)
        sizes = [Image.open(io.BytesIO(base64.b64decode(png.partition(",")[2]))).size for png in pngs]
        assert all(max(size) == pixels for size in sizes)


def test_label_maps_without_images_are_shown_too(tmp_path):
    arguments = write_evaluation(tmp_path)
    arguments["cases"] = [{"name": case["name"], "label": case["label"]} for case in arguments["cases"]]
    outline = Outline(write_report(score(arguments), **arguments, pictures=1).read_text(encoding="utf-8"))
    titles = [attributes["alt"].partition(",")[0] for _, attributes in outline.of("img")][-4:]
    assert titles == ["Reference", "Prediction", "Slice of reference", "Slice of prediction"]


def test_without_matplotlib_there_are_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(report_page, "optional_import", lambda module: (None, False))
    outline = Outline(report(tmp_path))
    assert not outline.of("img") and "need matplotlib: pip install monai_skelrec[report]" in outline.text
    assert "Mean ± standard deviation" in outline.text


def test_nothing_scored_is_a_page_with_the_reasons(tmp_path):
    arguments = write_evaluation(tmp_path, {"lost": None, "fine": TREE})
    scores = score(arguments)
    lost = type(scores)([], [{**row, "cases": 0, "dice_mean": math.nan} for row in scores.summary], scores.errors * 2)
    outline = Outline(write_report(lost, **arguments).read_text(encoding="utf-8"))
    assert "0 cases scored, 2 cases could not be scored" in outline.text and not outline.of("img")


# --- whole, and harmless ---------------------------------------------------------------------------------------------


def test_page_refers_to_nothing_outside(made):
    text, outline = made
    for tag, attributes in outline.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes[name][:80])
    for _, attributes in outline.of("img"):
        if attributes["src"].startswith("data:image/svg+xml"):
            svg = base64.b64decode(attributes["src"].partition(",")[2]).decode()
            assert not re.search(r'(href|src)="(?!#)|url\((?!#)|@import|<script', svg)
    assert "default-src 'none'" in text and not re.search(r"url\((?!#)|@import", text)


def test_values_from_files_are_escaped(made):
    text, outline = made
    assert not outline.of("b", "i")
    assert html.escape(NAMES[-1]) in text and "cut &amp; sewn" in text


@pytest.mark.parametrize("words", ["<script>alert(1)</script>", "'\"><img src=x onerror=alert(1)>", "$title ${x} $"])
def test_nothing_that_is_said_about_a_run_becomes_markup(tmp_path, words, monkeypatch):
    monkeypatch.setattr(report_page, "optional_import", lambda module: (None, False))
    clean = Outline(report(tmp_path, pictures=0, about={"task": "x", "y": "x"}))
    outline = Outline(report(tmp_path, pictures=0, about={"task": words, words: words}))
    assert [tag for tag, _ in outline.tags if tag != "path"] == [tag for tag, _ in clean.tags if tag != "path"]
    assert outline.text.count(words) == 5  # the title, the heading, two facts and the name of one


# --- for everybody ---------------------------------------------------------------------------------------------------


def test_language_title_and_headings_are_in_order(made):
    _, outline = made
    assert outline.of("html")[0][1]["lang"] == "en" and len(outline.of("h1", "title")) == 2
    levels = [int(tag[1]) for tag, _ in outline.of("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:]))


def test_tables_are_tables(made):
    _, outline = made
    tables = len(outline.of("table"))
    assert tables >= 5 and len(outline.of("caption")) == tables
    assert all(attributes.get("scope") in ("col", "row") for _, attributes in outline.of("th"))
    boxes = [attributes for tag, attributes in outline.of("div") if attributes.get("class") == "scroll"]
    assert len(boxes) == tables and all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_figures_have_captions_and_images_have_words(made):
    _, outline = made
    assert len(outline.of("figure")) == len(outline.of("figcaption")) == len(outline.of("img"))
    assert all(len(attributes["alt"]) > 20 for _, attributes in outline.of("img"))


def test_links_lead_somewhere(made):
    _, outline = made
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for _, attributes in outline.of("a")} <= set(ids)


def luminance(colour):
    colour = colour.lstrip("#")
    colour = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)])
    return float(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", [0, 1])
def test_text_stands_out_from_its_ground(theme):
    """WCAG 2.2, success criterion 1.4.3: 4.5 to 1."""
    block = re.findall(r":root\{(.*?)\}", paper._STYLE.replace("\n", ""))[theme]
    colours = dict(re.findall(r"--([\w-]+):(#\w+)", block))
    pairs = [(ink, ground) for ink in ("ink", "soft", "link") for ground in ("paper", "card")]
    for ink, ground in [*pairs, ("bad", "bad-paper"), ("ink", "bad-paper")]:
        light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)

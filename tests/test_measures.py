"""The vocabulary of the tables: one entry a column, in one form."""

from __future__ import annotations

from pathlib import Path

from monai_skelrec.measures import MEASURES


def test_every_measure_can_be_printed():
    for name, measure in MEASURES.items():
        assert measure.name == name == name.lower()
        assert measure.unit in ("", "count", "mm") and name.endswith("_mm") == (measure.unit == "mm")
        assert measure.heading and measure.absent and not measure.convention.endswith(".")


def test_headings_are_unique_and_overlaps_alone_are_better_when_higher():
    headings = [measure.heading for measure in MEASURES.values()]
    assert len(set(headings)) == len(headings)
    higher = [name for name, measure in MEASURES.items() if measure.higher_is_better]
    lines = ["centerline_dice", "centerline_precision", "centerline_sensitivity", "filled_centerline_dice"]
    assert higher == ["dice", "precision", "recall", *lines]


def test_the_documentation_says_the_same():
    page = (Path(__file__).parents[1] / "bundle" / "docs" / "scoring.md").read_text(encoding="utf-8")
    for measure in MEASURES.values():
        better = "higher" if measure.higher_is_better else "lower"
        what = measure.convention[0].upper() + measure.convention[1:]
        row = [f"`{measure.name}`", measure.heading, measure.unit or "share", better, what, measure.absent]
        assert f"| {' | '.join(row)} |" in page.replace("\\|", "|"), measure.name

"""The pages as Chromium shows them, on a phone and on a desk; skipped where there is no browser."""

from __future__ import annotations

import pytest
from browser import DESK, PHONE, assert_fits, look, needs_browser
from report_data import score, write_evaluation

from monai_skelrec.comparison_page import compare_runs
from monai_skelrec.report_page import write_report

pytestmark = needs_browser

OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    arguments = write_evaluation(tmp_path_factory.mktemp("report"))
    long = {"task": "trees", "weights": "/a/very/long/path/" + "without_a_place_to_break_it" * 8 + "/model.pt"}
    return write_report(score(arguments), **arguments, about=long, pictures=2)


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_comparison_fits_the_window(report, width, tmp_path):
    table = (report.parent / "scores.csv").read_text(encoding="utf-8")
    runs = [tmp_path / run for run in ("plain", "a_run_with_a_name_without_a_place_to_break_it_anywhere")]
    for run in runs:
        run.mkdir()
        (run / "scores.csv").write_text(table, encoding="utf-8")
    seen = look(compare_runs([str(run) for run in runs], tmp_path / "out")[1], width, tmp_path, OPEN_ALL)
    assert_fits(seen, width)
    assert len(seen["images"]) == 4


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_report_fits_the_window(report, width, tmp_path):
    seen = look(report, width, tmp_path, OPEN_ALL)
    assert_fits(seen, width)
    assert len(seen["images"]) >= 12 + 3


def test_cases_are_sorted_by_a_click(report, tmp_path):
    column = """
        const table = document.querySelector("#cases table.sortable");
        const place = [...table.tHead.rows[0].cells].findIndex(head => head.textContent.startsWith("Dice"));
        const head = table.tHead.rows[0].cells[place], button = head.querySelector("button");
        const read = () => [head.ariaSort, ...[...table.tBodies[0].rows].map(row => row.cells[0].textContent)];
        const found = [read()];
        for (let click = 0; click < 2; click++) { button.click(); found.push(read()); }
        return found;
    """
    written, rising, falling = look(report, DESK, tmp_path, column)["act"]
    assert written == [None, "gone", "cut & sewn", "fine"]
    assert rising == ["ascending", "gone", "cut & sewn", "fine"]
    assert falling == ["descending", "fine", "cut & sewn", "gone"]

"""Losses side by side: what one picture shows, which cases are drawn, and what stops them."""

from __future__ import annotations

import math

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_skelrec import loss_pictures, panels, picture_sheets
from monai_skelrec.loss_pictures import Evaluation, differing_cases, draw_differences, draw_losses
from monai_skelrec.loss_table import LossRun, write_loss_table
from monai_skelrec.panels import read_case, read_predictions
from monai_skelrec.scores import score_label_maps

NAMES, VALUES = ["background", "trunk", "branch"], [0, 1, 7]

TREE = np.zeros((40, 30, 12), dtype=np.uint8)
TREE[10:30, 14:17, 5:8] = 1
TREE[16:19, 17:24, 5:8] = 7
CUT = TREE.copy()
CUT[20:24] = 0
# a branch that nobody else has, far from all others
FAR = TREE.copy()
FAR[36:39, 4:27, 5:8] = 7

ROAD = np.zeros((60, 80), dtype=np.uint8)
ROAD[30:33, 5:75] = 255
BROKEN = ROAD.copy()
BROKEN[:, 40:50] = 0


def nifti(path, array, spacing=(1, 1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


def volumes(folder, **predictions):
    """Paths of image, reference and predictions of one case."""
    files = {loss: nifti(folder / loss / "case.nii.gz", pred) for loss, pred in predictions.items()}
    return nifti(folder / "image.nii.gz", TREE * np.float32(80.5)), nifti(folder / "label.nii.gz", TREE), files


def pictures(folder, mode, **predictions):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ROAD // 2).convert(mode).save(folder / "image.tif")
    Image.fromarray(ROAD).save(folder / "label.png")
    for loss, pred in predictions.items():
        Image.fromarray(pred).save(folder / f"{loss}.png")
    return folder / "image.tif", folder / "label.png", {loss: folder / f"{loss}.png" for loss in predictions}


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def red(picture):
    """Number of pixels of the colour of missed centreline, above the legend."""
    return int(((picture[..., 0] > 240) & (picture[..., 1] < 60) & (picture[..., 2] < 60))[:-90].sum())


@pytest.fixture
def sheets(monkeypatch):
    """What would be drawn: the heading, the line below it, and the tiles."""
    seen = []

    def draw(path, heading, line, tiles, class_names):
        seen.append((heading, line, tiles, class_names))
        return path

    monkeypatch.setattr(loss_pictures, "draw_sheet", draw)
    return seen


# --- one case -------------------------------------------------------------------------------------------------------


def test_image_and_reference_come_first_then_every_loss_with_its_scores(tmp_path, sheets):
    image, label, files = volumes(tmp_path, whole=TREE, cut=CUT)
    draw_losses(image, label, files, tmp_path / "7.png", NAMES, VALUES, line="below")
    heading, line, tiles, classes = sheets[0]
    assert (heading, line, classes) == ("7", "below", {1: "trunk", 2: "branch"})
    assert [tile.title for tile in tiles] == ["Image (maximum projection)", "Reference", "whole", "cut"]
    # the cut trunk is in two parts, the branch in one: half an error in the mean
    assert tiles[2].note == "clDice 1.000, beta0 error 0" and tiles[3].note.endswith(", beta0 error 0.5")
    assert [len(tile.view.marks["breaks"]) for tile in tiles[2:]] == [0, 1]
    assert (tiles[0].note, tiles[1].note) == ("", "")


def test_without_image_the_reference_is_first(tmp_path, sheets):
    _, label, files = volumes(tmp_path, cut=CUT)
    draw_losses(None, label, files, tmp_path / "7.png", NAMES, VALUES)
    assert [tile.title for tile in sheets[0][2]] == ["Reference", "cut"]


def test_all_panels_show_the_same_part_of_a_volume(tmp_path, sheets):
    image, label, files = volumes(tmp_path, whole=TREE, far=FAR)
    draw_losses(image, label, files, tmp_path / "7.png", NAMES, VALUES)
    tiles = sheets[0][2]
    assert len({tile.view.extent for tile in tiles}) == 1
    assert len({tile.view.panels[tile.panel].shape for tile in tiles}) == 1
    # rows 10 to 38 hold foreground of one or the other, columns 4 to 26; 3 voxels of context, as far as there are any
    assert tiles[0].view.extent == (0, 40 - 7, 0, 30 - 1)


def test_predictions_are_cropped_to_what_any_of_them_holds(tmp_path):
    image, label, files = volumes(tmp_path, whole=TREE, far=FAR)
    together = read_predictions(image, label, list(files.values()), VALUES)
    alone = [read_case(image, label, path, VALUES) for path in files.values()]
    assert [case.pred.shape[0] for case in together] == [33, 33]
    assert [case.pred.shape[0] for case in alone] == [26, 33]
    assert (together[1].pred == alone[1].pred).all() and len(together[0].faults.breaks) == 0


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_2d_case_is_drawn_with_its_faults(tmp_path, mode):
    image, label, files = pictures(tmp_path, mode, whole=ROAD, broken=BROKEN)
    names, values = ["background", "road"], [0, 255]
    both = draw_losses(image, label, files, tmp_path / "out" / "both.png", names, values)
    whole = draw_losses(image, label, {"whole": files["whole"]}, tmp_path / "out" / "whole.png", names, values)
    assert pixels(both).shape[1] == 1800
    assert red(pixels(both)) > red(pixels(whole)) == 0
    assert sorted(path.name for path in both.parent.iterdir()) == ["both.png", "whole.png"]


def test_volume_is_drawn_with_its_faults(tmp_path):
    image, label, files = volumes(tmp_path, whole=TREE, cut=CUT)
    assert red(pixels(draw_losses(image, label, files, tmp_path / "both.png", NAMES, VALUES))) > 0
    assert red(pixels(draw_losses(image, label, {"a": files["whole"]}, tmp_path / "a.png", NAMES, VALUES))) == 0


def test_numpy_volumes_take_the_spacing_that_is_given(tmp_path, sheets):
    for name, array in (("image", TREE * 100.0), ("label", TREE), ("cut", CUT)):
        np.save(tmp_path / f"{name}.npy", array)
    image, label, cut = (tmp_path / f"{name}.npy" for name in ("image", "label", "cut"))
    for spacing in (None, (1, 2, 1)):
        draw_losses(image, label, {"cut": cut}, tmp_path / "7.png", NAMES, VALUES, spacing=spacing)
    once, twice = (sheet[2][0].view.ratio for sheet in sheets)
    assert twice == pytest.approx(2 * once)


def test_values_that_are_not_listed_mean_what_is_given(tmp_path, sheets):
    image, label, files = pictures(tmp_path, "L", faint=ROAD - (ROAD > 0))
    with pytest.raises(ValueError, match="values that are not in label_values: 254"):
        draw_losses(image, label, files, tmp_path / "7.png", ["background", "road"], [0, 255])
    draw_losses(image, label, files, tmp_path / "7.png", ["background", "road"], [0, 255], other_values="nearest")
    assert sheets[0][2][-1].note == "clDice 1.000, beta0 error 0"


def test_case_without_foreground_says_so(tmp_path, sheets):
    nothing = np.zeros_like(ROAD)
    image, label, files = pictures(tmp_path, "L", loss=nothing)
    Image.fromarray(nothing).save(label)
    draw_losses(image, label, files, tmp_path / "7.png", ["background", "road"], [0, 255])
    assert sheets[0][2][-1].note == "no foreground"


@pytest.mark.parametrize("losses, rows, columns", [(2, 1, 4), (3, 2, 3), (4, 2, 3), (6, 2, 4), (7, 3, 3), (11, 4, 4)])
def test_panels_are_wrapped_into_rows_of_about_one_length(tmp_path, monkeypatch, losses, rows, columns):
    """Image, reference and losses on pictures as high as wide: the places of the panels on the sheet."""
    places = []
    monkeypatch.setattr(picture_sheets, "_draw_tile", lambda axes, tile: places.append(axes.get_position()))
    monkeypatch.setattr(picture_sheets, "replace", lambda path, write: None)
    image, label, files = pictures(tmp_path, "L", a=BROKEN)
    draw_losses(
        image,
        label,
        {str(number): files["a"] for number in range(losses)},
        tmp_path / "7.png",
        ["background", "road"],
        [0, 255],
    )
    assert len({round(place.y0, 6) for place in places}) == rows
    assert len({round(place.x0, 6) for place in places}) == columns
    assert all(0 <= place.x0 < place.x1 <= 1 and 0 <= place.y0 < place.y1 <= 1 for place in places)


def test_long_names_are_written_smaller_and_stay_in_their_column(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(picture_sheets, "replace", lambda path, write: None)
    draw_tile = picture_sheets._draw_tile
    monkeypatch.setattr(picture_sheets, "_draw_tile", lambda axes, tile: (draw_tile(axes, tile), figures.append(axes)))
    image, label, files = pictures(tmp_path, "L", a=BROKEN)
    losses = {"short": files["a"], "a_name_of_a_loss_that_says_all_about_its_weights": files["a"]}
    draw_losses(image, label, losses, tmp_path / "7.png", ["background", "road"], [0, 255])
    for axes in figures:
        title, panel = axes.title.get_window_extent(), axes.get_window_extent()
        assert title.width <= panel.width
    assert figures[3].title.get_fontsize() < figures[2].title.get_fontsize() == 13


def test_marks_have_one_size_on_all_panels(tmp_path, monkeypatch):
    """One loss breaks 14 roads, one breaks one: alone, a single ring would be larger than each of many."""
    comb = np.zeros((90, 90), dtype=np.uint8)
    for road in range(14):
        comb[5:85, 6 * road + 3 : 6 * road + 6] = 255
    one, many = comb.copy(), comb.copy()
    one[40:50, :7] = 0
    many[40:50] = 0
    for name, array in (("image", comb), ("label", comb), ("one", one), ("many", many)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    sizes = []

    def draw(predictions):
        files = {name: tmp_path / f"{name}.png" for name in predictions}
        image, label = (tmp_path / f"{name}.png" for name in ("image", "label"))
        sizes.clear()
        draw_losses(image, label, files, tmp_path / "out.png", ["background", "road"], [0, 255])
        return list(sizes)

    draw_tile = picture_sheets.draw_marks

    def marked(axes, view, beside):
        draw_tile(axes, view, beside)
        # markers without a face are the rings
        sizes.append({size for each in axes.collections if not len(each.get_facecolor()) for size in each.get_sizes()})

    monkeypatch.setattr(picture_sheets, "draw_marks", marked)
    alone, (first, second) = draw(["one"]), draw(["one", "many"])
    assert first == second and max(first) < max(alone[0])


def test_prediction_that_is_missing_is_named(tmp_path):
    image, label, files = volumes(tmp_path, whole=TREE)
    files["lost"] = tmp_path / "lost" / "case.nii.gz"
    with pytest.raises(FileNotFoundError, match=r"the prediction is missing: .*lost.case.nii.gz does not exist"):
        draw_losses(image, label, files, tmp_path / "7.png", NAMES, VALUES)


def test_no_losses_are_refused(tmp_path):
    image, label, _ = volumes(tmp_path)
    with pytest.raises(ValueError, match="predictions must hold a label map of one loss at least"):
        draw_losses(image, label, {}, tmp_path / "7.png", NAMES, VALUES)


# --- which cases ----------------------------------------------------------------------------------------------------


def rows(**values):
    return [{"case": case, "centerline_dice": value, "dice": 1 - value} for case, value in values.items()]


def test_cases_with_the_largest_spread_over_losses_are_chosen():
    # spreads: near 0.1, far 0.5, middle 0.3, though all of them are high in "far"
    scores = {"a": rows(near=0.2, far=1.0, middle=0.5), "b": rows(near=0.3, far=0.5, middle=0.2)}
    scores["c"] = rows(near=0.25, far=0.9, middle=0.4)
    assert differing_cases(scores, 9) == ["far", "middle", "near"]
    assert differing_cases(scores, 2) == ["far", "middle"]
    assert differing_cases(scores, 0) == []


def test_cases_are_chosen_by_the_measure_that_is_given():
    scores = {"a": rows(x=0.5, y=0.5), "b": rows(x=0.5, y=0.4)}
    for row, value in zip(scores["b"], (0.0, 0.5)):
        row["dice"] = value
    assert differing_cases(scores, 1) == ["y"]
    assert differing_cases(scores, 1, "dice") == ["x"]


def test_case_that_a_loss_has_no_score_of_is_not_chosen():
    scores = {"a": rows(here=0.5, nan=math.nan, missing=1.0), "b": rows(here=0.5, nan=0.2)}
    assert differing_cases(scores, 9) == ["here"]
    assert differing_cases({**scores, "c": []}, 9) == []


# --- a table of runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """Two losses, two seeds, two folds; a broken road in the second loss, and in fold 1 more of it."""
    runs, cases = [], {}
    for loss in ("whole", "broken"):
        for seed in (3, 1):
            for fold in ("0", "1"):
                folder = tmp_path / "table" / loss / f"fold_{fold}_seed_{seed}"
                pred = ROAD.copy()
                if loss == "broken":
                    # seed 3 breaks fold 0 more, so that its scores would choose another case first
                    pred[:, 40 : 40 + (20 if (fold == "1") == (seed == 1) else 4)] = 0
                name = f"road {fold}"
                image, label, files = pictures(tmp_path / name, "L", loss=pred)
                cases[fold] = {"name": name, "image": str(image), "label": str(label)}
                path = folder / "report_0" / "predictions" / f"{name}.png"
                path.parent.mkdir(parents=True)
                files["loss"].rename(path)
                names, values = ["background", "road"], [0, 255]
                score_label_maps([cases[fold]], path.parent, ".png", names, values, "error", folder / "report_0")
                runs.append(LossRun(loss, seed, fold, folder))
    return tmp_path / "table", runs, cases


def evaluations(cases):
    return lambda run, report: Evaluation([cases[run.fold]], ["background", "road"], [0, 255], "error", ".png", None)


def test_cases_of_all_folds_are_drawn_with_the_lowest_seed(table, sheets):
    folder, runs, cases = table
    paths = draw_differences(folder, runs, ["report_0"], evaluations(cases), 5)
    assert paths == [folder / "pictures" / "road 1.png", folder / "pictures" / "road 0.png"]
    lines, tiles = [sheet[1] for sheet in sheets], sheets[0][2]
    assert lines[0].startswith("seed 1, fold 1; clDice of the losses from 0.") and lines[0].endswith(" to 1.000")
    assert [tile.title for tile in tiles] == ["Image", "Reference", "whole", "broken"]
    # what stands on the picture is what stands in the table
    text = (runs[-1].folder / "report_0" / "scores.csv").read_text().splitlines()
    value = float(text[1].split(",")[text[0].split(",").index("centerline_dice")])
    assert runs[-1].seed == 1 and tiles[3].note == f"clDice {value:.3f}, beta0 error 1"


def test_picture_of_an_earlier_call_that_the_table_no_longer_shows_is_removed(table, sheets):
    folder, runs, cases = table
    (folder / "pictures").mkdir(exist_ok=True)
    for name in ("old.png", "road 1.png"):
        (folder / "pictures" / name).touch()
    draw_differences(folder, runs, ["report_0"], evaluations(cases), 1)
    assert [path.name for path in (folder / "pictures").iterdir()] == ["road 1.png"]


def test_limit_bounds_the_pictures_and_zero_needs_no_matplotlib(table, sheets, monkeypatch):
    folder, runs, cases = table
    assert [path.stem for path in draw_differences(folder, runs, ["report_0"], evaluations(cases), 1)] == ["road 1"]
    monkeypatch.setattr(panels, "optional_import", lambda module: (None, False))
    assert draw_differences(folder, runs, ["report_0"], evaluations(cases), 0) == []
    with pytest.raises(ImportError, match=r"pictures need matplotlib: .* or set --pictures 0"):
        draw_differences(folder, runs, ["report_0"], evaluations(cases), 1)


def test_runs_without_counterpart_are_not_drawn(table, sheets):
    folder, runs, cases = table
    some = [run for run in runs if run.loss == "whole" or run.seed == 3]
    draw_differences(folder, some, ["report_0"], evaluations(cases), 1)
    assert sheets[0][1].startswith("seed 3, fold 0; ")
    apart = [run for run in runs if (run.loss, run.seed) in (("whole", 1), ("broken", 3))]
    assert draw_differences(folder, apart, ["report_0"], evaluations(cases), 1) == []


def test_case_that_is_gone_from_the_data_is_named(table):
    folder, runs, cases = table
    with pytest.raises(ValueError, match="case 'road 1' was scored in fold 1 and is not among its 1 cases any more"):
        draw_differences(folder, runs, ["report_0"], evaluations({"0": cases["0"], "1": cases["0"]}), 1)


def test_table_shows_the_pictures_by_relative_links(table):
    folder, runs, cases = table
    drawn = draw_differences(folder, runs, ["report_0"], evaluations(cases), 1)
    text = write_loss_table(folder, runs, ["report_0"], ["dice"], pictures=drawn).read_text()
    assert "## Cases on which the losses differ most" in text
    assert "![Case road 1: image, reference, and each loss with its faults](pictures/road%201.png)" in text
    assert drawn[0].is_file()
    assert "differ most" not in write_loss_table(folder, runs, ["report_0"], ["dice"]).read_text()

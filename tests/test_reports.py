"""Pictures of scored cases: what is on them, which cases are drawn, and what stops them."""

from __future__ import annotations

import matplotlib.pyplot
import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_skelrec import panels, reports
from monai_skelrec.reports import draw_case, draw_cases
from monai_skelrec.scores import score_label_maps

NAMES = ["background", "trunk", "branch", "twig", "bud"]
VALUES = [0, 1, 2, 3, 9]

TREE = np.zeros((40, 30, 12), dtype=np.uint8)
TREE[4:36, 14:17, 5:8] = 1
TREE[10:13, 17:28, 5:8] = 2
TREE[24:27, 3:14, 5:8] = 3
TREE[34:36, 10:14, 6] = 9
CUT = TREE.copy()
CUT[18:22] = 0
WORSE = TREE.copy()
WORSE[14:32] = 0


def nifti(path, array, spacing=(1, 1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])), path)
    return path


def draw(folder, pred, reference=TREE, spacing=(1, 1, 1), **options):
    return draw_case(
        nifti(folder / "image.nii.gz", reference * np.float32(80.5), spacing),
        nifti(folder / "reference.nii.gz", reference, spacing),
        nifti(folder / "prediction.nii.gz", pred, spacing),
        folder / "pictures" / "case.png",
        NAMES,
        VALUES,
        **options,
    )


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def red(picture: np.ndarray) -> int:
    """Number of pixels of the colour of missed centreline, above the legend."""
    return int(((picture[..., 0] > 240) & (picture[..., 1] < 60) & (picture[..., 2] < 60))[:-90].sum())


def test_picture_is_wide_enough_to_read_and_leaves_nothing_beside_it(tmp_path):
    path = draw(tmp_path, CUT)
    assert path == tmp_path / "pictures" / "case.png"
    assert [file.name for file in path.parent.iterdir()] == ["case.png"]
    assert pixels(path).shape[1] == 1800


def test_missed_centreline_is_marked_and_only_that(tmp_path):
    assert red(pixels(draw(tmp_path, TREE))) == 0
    few, many = red(pixels(draw(tmp_path, CUT))), red(pixels(draw(tmp_path, WORSE)))
    assert 0 < few < many


def test_wrong_class_is_missed_too(tmp_path):
    swapped = np.where(TREE == 1, 2, TREE)
    assert red(pixels(draw(tmp_path, swapped))) > 0


def test_spacing_sets_the_proportions(tmp_path):
    """Twice as long voxels upwards make panels twice as high: 12 inches less margins and gaps, by four, at 150 dpi."""
    heights = [pixels(draw(tmp_path, CUT, spacing=spacing)).shape[0] for spacing in ((1, 1, 1), (1, 2, 1))]
    box = np.argwhere(TREE)
    size = np.minimum(np.ptp(box, axis=0) + 1 + 6, TREE.shape)  # with the context of 3 voxels on either side
    size[:2] = np.minimum(box.max(axis=0)[:2] + 4, TREE.shape[:2]) - np.maximum(box.min(axis=0)[:2] - 3, 0)
    panel_width = (12 - 2 * 0.15 - 3 * 0.12) / 4 * 150
    assert heights[1] - heights[0] == pytest.approx(panel_width * size[1] / size[0], abs=2)


def test_flat_objects_are_drawn_in_two_rows(tmp_path):
    flat = np.zeros((120, 20, 9), dtype=np.uint8)
    flat[5:115, 8:11, 3:6] = 1
    assert pixels(draw(tmp_path, flat, reference=flat)).shape[0] < 700


def test_radius_and_groups_reach_the_tube(tmp_path):
    default, thin, each = (
        pixels(draw(tmp_path, TREE, **options)) for options in ({}, {"radius": 0}, {"groups": "each", "radius": 0})
    )
    assert (default != thin).any() and (thin != each).any()
    # the tube is the last panel: the other three stay as they are
    assert (default[:, :1300] == thin[:, :1300]).all()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_2d_pictures_are_drawn(tmp_path, mode):
    label = np.zeros((60, 80), dtype=np.uint8)
    label[30:33, 5:75] = 255
    pred = label.copy()
    pred[:, 40:50] = 0
    Image.fromarray(label // 2).convert(mode).save(tmp_path / "image.tif")
    Image.fromarray(label).save(tmp_path / "reference.png")
    Image.fromarray(pred).save(tmp_path / "prediction.png")
    files = [tmp_path / name for name in ("image.tif", "reference.png", "prediction.png")]
    path = draw_case(*files, tmp_path / "out.png", ["background", "road"], [0, 255])
    assert red(pixels(path)) > 0


def test_numpy_volumes_take_the_spacing_that_is_given(tmp_path):
    for name, array in (("image", TREE * 100.0), ("reference", TREE), ("prediction", CUT)):
        np.save(tmp_path / f"{name}.npy", array)
    files = [tmp_path / f"{name}.npy" for name in ("image", "reference", "prediction")]
    sizes = [
        pixels(draw_case(*files, tmp_path / "out.png", NAMES, VALUES, spacing=spacing)).shape[0]
        for spacing in (None, (1, 1, 1), (1, 2, 1))
    ]
    assert sizes[0] == sizes[1] < sizes[2]


def test_case_without_foreground_is_drawn(tmp_path):
    assert red(pixels(draw(tmp_path, np.zeros_like(TREE), reference=np.zeros_like(TREE)))) == 0


def test_pyplots_figures_are_left_alone(tmp_path):
    before = matplotlib.get_backend(), matplotlib.pyplot.get_fignums(), dict(matplotlib.rcParams)
    draw(tmp_path, CUT)
    assert (matplotlib.get_backend(), matplotlib.pyplot.get_fignums(), dict(matplotlib.rcParams)) == before


def test_image_of_another_shape_is_named(tmp_path):
    nifti(tmp_path / "image.nii.gz", TREE[1:])
    label = nifti(tmp_path / "label.nii.gz", TREE)
    with pytest.raises(
        ValueError, match=r"image and label map must have one shape, got \(39, 30, 12\) in .*image.nii.gz"
    ):
        draw_case(tmp_path / "image.nii.gz", label, label, tmp_path / "out.png", NAMES, VALUES)


def test_missing_matplotlib_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(panels, "optional_import", lambda module: (None, False))
    with pytest.raises(ImportError, match=r"pictures need matplotlib: pip install monai_skelrec\[report\]"):
        draw(tmp_path, CUT)


# --- many cases -----------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path):
    """Cases "fine", "cut" and "worse", one without prediction, and one with nothing in it."""
    predictions = {"fine": TREE, "cut": CUT, "worse": WORSE, "failed": None, "empty": np.zeros_like(TREE)}
    cases = []
    for name, pred in predictions.items():
        label = np.zeros_like(TREE) if name == "empty" else TREE
        image = nifti(tmp_path / "images" / f"{name}.nii.gz", label)
        cases.append({"name": name, "image": str(image), "label": str(nifti(tmp_path / "labels" / image.name, label))})
        if pred is not None:
            nifti(tmp_path / "predictions" / image.name, pred)
    return {
        "cases": cases,
        "predictions_dir": str(tmp_path / "predictions"),
        "output_ext": ".nii.gz",
        "class_names": NAMES,
        "label_values": VALUES,
        "other_values": "error",
        "output_dir": str(tmp_path / "out"),
    }


def test_worst_cases_are_drawn_first(arguments):
    paths = draw_cases(**arguments, limit=2)
    assert [path.name for path in paths] == ["worse.png", "cut.png"]
    assert all(path.is_file() for path in paths)


def test_cases_without_a_score_are_not_drawn(arguments):
    assert [path.stem for path in draw_cases(**arguments, limit=9)] == ["worse", "cut", "fine"]


def test_scores_that_are_there_already_are_used(arguments, monkeypatch):
    scores = score_label_maps(**arguments)
    monkeypatch.setattr(reports, "score_label_maps", None)
    assert [path.stem for path in draw_cases(**arguments, scores=scores, limit=1)] == ["worse"]


def test_no_pictures_need_no_matplotlib(arguments, monkeypatch):
    monkeypatch.setattr(panels, "optional_import", lambda module: (None, False))
    assert draw_cases(**arguments, limit=0) == []
    with pytest.raises(ImportError, match="or set --pictures 0"):
        draw_cases(**arguments, limit=1)


def test_of_many_breaks_each_ring_is_smaller(tmp_path):
    """The 14th break of a comb of tubes takes less red than the first: 13 small rings cover less than 13 large ones."""
    comb = np.zeros((20, 90, 5), dtype=np.uint8)
    for tooth in range(14):
        comb[2:18, 6 * tooth + 3 : 6 * tooth + 6, 1:4] = 1
    pixels_of = []
    for number in (1, 12, 14):
        pred = comb.copy()
        pred[9:12, : 6 * number + 1] = 0
        pixels_of.append(red(pixels(draw(tmp_path, pred, reference=comb))))
    assert pixels_of[0] < pixels_of[2] < pixels_of[1]

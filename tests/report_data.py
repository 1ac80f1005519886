"""An evaluation small enough to draw, for the tests of its report."""

from __future__ import annotations

import nibabel
import numpy as np

from monai_skelrec.scores import score_label_maps

NAMES = ["background", "trunk", "branch", "<b>twig</b>"]
VALUES = [0, 1, 2, 9]

TREE = np.zeros((40, 30, 12), dtype=np.uint8)
TREE[4:36, 14:17, 5:8] = 1
TREE[10:13, 17:28, 5:8] = 2
TREE[24:27, 3:14, 5:8] = 9
# the trunk in two pieces; and a bridge between the upper branch and nothing
CUT = TREE.copy()
CUT[18:22] = 0
# worse: half of it is gone
GONE = TREE.copy()
GONE[14:32] = 0

PREDICTIONS = {"fine": TREE, "cut & sewn": CUT, "gone": GONE, "<i>absent": None}


def nifti(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 1.0, 1.0])), path)
    return path


def write_evaluation(root, predictions=PREDICTIONS):
    """Images, labels and predictions on disk, as the arguments of ``score_label_maps``; absent ones have no file."""
    cases = []
    for number, (name, pred) in enumerate(predictions.items()):
        file = f"{name}.nii.gz"
        image = nifti(root / "images" / file, TREE * np.float32(20 + number))
        cases.append({"name": file[:-7], "image": str(image), "label": str(nifti(root / "labels" / file, TREE))})
        if pred is not None:
            nifti(root / "predictions" / file, pred)
    return {
        "cases": cases,
        "predictions_dir": str(root / "predictions"),
        "output_ext": ".nii.gz",
        "class_names": NAMES,
        "label_values": VALUES,
        "other_values": "error",
        "output_dir": str(root / "out"),
    }


def score(arguments):
    """Scores of some measures; all of them would be as many plots on each page."""
    return score_label_maps(
        **arguments, measures=["dice", "centerline_dice", "betti0_error", "breaks", "hausdorff95_mm"]
    )

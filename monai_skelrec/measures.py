"""Step "label maps -> scores", the vocabulary: every column that a table of scores may hold, and what it means."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MEASURES", "Measure"]


@dataclass(frozen=True)
class Measure:
    """One column of ``scores.csv``; ``summary.csv`` holds ``<name>_mean`` and ``<name>_std``.

    Attributes:
        name: of the column.
        heading: for people, short enough for a table.
        unit: "" for a share from 0 to 1, "count" for whole numbers, "mm" for lengths. Where neither the files nor the
            task say how large a voxel is, its edge counts as 1 and "mm" means voxels.
        higher_is_better: False for errors.
        convention: how it is measured, one sentence without its full stop.
        absent: what a class scores that is in one of prediction and reference only, in words. A class in neither is
            left out everywhere.
    """

    name: str
    heading: str
    unit: str
    higher_is_better: bool
    convention: str
    absent: str


_CONNECTED = "foreground 26-connected and background 6-connected in 3D, 8 and 4 in 2D; outside the image is background"
_LENGTH = (
    "edges between neighbouring centreline voxels, in mm; an edge is left out where a third centreline voxel lies in "
    "the box that its ends span; a voxel carries half of each of its edges"
)

# in the order of the columns
MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("dice", "Dice", "", True, "twice the overlap by the sum of sizes", "0"),
        Measure("precision", "precision", "", True, "share of the prediction's voxels that lie in the reference", "0"),
        Measure("recall", "recall", "", True, "share of the reference's voxels that lie in the prediction", "0"),
        Measure("centerline_dice", "clDice", "", True, "harmonic mean of centreline precision and sensitivity", "0"),
        Measure(
            "betti0_error",
            "beta0 error",
            "count",
            False,
            f"|prediction - reference| of the number of components; {_CONNECTED}",
            "the other's number",
        ),
        Measure(
            "betti1_error",
            "beta1 error",
            "count",
            False,
            f"|prediction - reference| of the number of loops (2D: holes); {_CONNECTED}",
            "the other's number",
        ),
        Measure(
            "betti2_error",
            "beta2 error",
            "count",
            False,
            f"|prediction - reference| of the number of cavities, 3D only; {_CONNECTED}",
            "the other's number",
        ),
        Measure(
            "centerline_precision",
            "clPrecision",
            "",
            True,
            "share of the predicted centreline's voxels that lie in the reference",
            "0",
        ),
        Measure(
            "centerline_sensitivity",
            "clSensitivity",
            "",
            True,
            "share of the reference centreline's voxels that lie in the prediction",
            "0",
        ),
        Measure(
            "filled_centerline_dice",
            "clDice, filled",
            "",
            True,
            "centreline Dice after the cavities of both are filled, 3D only: the centreline of a hollow vessel is a "
            "shell, most of which lies in the reference",
            "0",
        ),
        Measure(
            "hausdorff95_mm",
            "HD95",
            "mm",
            False,
            "larger of the two directed 95th percentiles of the distances between surface voxels, as MONAI's",
            "the diagonal of the image",
        ),
        Measure(
            "surface_distance_mm",
            "surface distance",
            "mm",
            False,
            "mean distance between surface voxels, both directions pooled, as MONAI's symmetric one",
            "the diagonal of the image",
        ),
        Measure(
            "breaks",
            "breaks",
            "count",
            False,
            "gaps: runs of missed reference centreline with covered centreline at two ends at least, which the "
            "prediction does not connect within two voxels around the run; a run with n unconnected ends counts n - 1 "
            "times",
            "0: nothing covered, nothing cut, it is all missed centreline",
        ),
        Measure(
            "false_merges",
            "false merges",
            "count",
            False,
            "bridges: breaks with prediction and reference exchanged; at least as many as there are components of the "
            "reference that the prediction joins, less one for each joint component",
            "0",
        ),
        Measure(
            "false_contacts",
            "false contacts",
            "count",
            False,
            "other classes that the class touches in the prediction but not in the reference",
            "the number of classes it touches",
        ),
        Measure(
            "missed_centerline_mm",
            "missed centreline",
            "mm",
            False,
            f"length of the reference centreline outside the prediction: {_LENGTH}",
            "all of the reference's",
        ),
        Measure(
            "false_centerline_mm",
            "false centreline",
            "mm",
            False,
            f"length of the predicted centreline outside the reference: {_LENGTH}",
            "all of the prediction's",
        ),
        Measure(
            "radius_error_mm",
            "radius error",
            "mm",
            False,
            "mean |prediction - reference| of the distance to the background, over the voxels of the reference "
            "centreline that lie in the prediction",
            "left out",
        ),
        Measure(
            "side_confusion",
            "left/right confusion",
            "",
            False,
            "share of the reference centreline that the prediction gives to the same structure of the other side; "
            "classes whose names differ by left and right only",
            "0 where the reference has it, else left out",
        ),
    )
}

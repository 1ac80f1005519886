"""All 48 ways to store a scan's axes, as files: one label map in space, each on the grid of its own file."""

from __future__ import annotations

from itertools import permutations, product

import itk
import nibabel
import numpy as np
import pytest
from scan_data import LABEL_VALUES, affine_of, expected, oblique, phantom, threshold_network

from monai_skelrec import files
from monai_skelrec.reading import read_scan
from monai_skelrec.scan_runs import segment_scans
from monai_skelrec.scans import find_scans
from monai_skelrec.segmenting import Segmenter
from monai_skelrec.streaming import Windows

TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
TURNS = [(order, flips) for order in permutations(range(3)) for flips in product((False, True), repeat=3)]
# NRRD stores direction times spacing; NIfTI's affine is in single precision
DIGITS, SINGLE = 1e-14, 2e-6


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Hundreds of small files need not be on the disk before the next one."""
    monkeypatch.setattr(files, "_flush", lambda path: None)


def stored(scan, affine, order, flips):
    """The same scan with its axes in another order and direction: array and affine."""
    turned = scan.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    index = np.eye(4)  # from the new indices to the old ones
    index[:3, :3] = 0
    for new, (old, flip) in enumerate(zip(order, flips)):
        index[old, new] = -1 if flip else 1
        index[old, 3] = scan.shape[old] - 1 if flip else 0
    return np.ascontiguousarray(turned), affine @ index


def write(path, array, affine):
    if path.suffix == ".nii":
        nibabel.save(nibabel.Nifti1Image(array, affine), path)
        return
    lps = TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    itk.imwrite(image, str(path))


def by_another_library(path):
    """Array and affine as nibabel has them of NIfTI, and ITK of the other formats."""
    if path.suffix == ".nii":
        image = nibabel.load(path)
        return np.asarray(image.dataobj), image.affine
    image = itk.imread(str(path))
    affine = np.eye(4)
    affine[:3, :3] = itk.array_from_matrix(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return itk.array_from_image(image).T, TO_LPS @ affine


def on_grid(array, affine, *, shape, grid):
    """Put each voxel where its world coordinates lie on another grid; -1 where none does."""
    indices = np.stack([each.ravel() for each in np.indices(array.shape)] + [np.ones(array.size, int)])
    places = (np.linalg.solve(grid, affine) @ indices)[:3]
    assert np.abs(places - np.rint(places)).max() < 1e-4
    found = np.full(shape, -1)
    found[tuple(np.rint(places).astype(int))] = array.ravel()
    return found


def segment_all(folder, source, target, affine, spacing=None):
    """Write the 48 files, segment them in one run, and read scans and label maps back."""
    (folder / "in").mkdir()
    for number, turn in enumerate(TURNS):
        write(folder / "in" / f"{number:02d}{source}", *stored(phantom(), affine, *turn))
    segmenter = Segmenter(threshold_network(), Windows((8, 8, 8)), 3, spacing=spacing)
    records = segment_scans(
        find_scans(folder / "in"), segmenter, read_scan, folder / "out", label_values=LABEL_VALUES, output_ext=target
    )
    assert [record["status"] for record in records] == ["done"] * 48
    for number in range(48):
        yield [
            by_another_library(folder / where / f"{number:02d}{end}")
            for where, end in (("in", source), ("out", target))
        ]


def test_the_48_ways_are_all_and_no_two_are_one():
    ways = {
        (array.tobytes(), affine.tobytes()) for array, affine in (stored(phantom(), affine_of(), *t) for t in TURNS)
    }
    assert len(ways) == len({array for array, _ in ways}) == 48
    turns = [np.linalg.det(stored(phantom(), affine_of(), *turn)[1][:3, :3]) for turn in TURNS]
    assert sum(turn > 0 for turn in turns) == 24  # the others are mirror images: improper directions


@pytest.mark.parametrize(
    "source, target, rotation",
    [
        (".nii", ".nii", None),
        (".nii", ".nii", oblique()),
        (".mha", ".mha", oblique()),
        (".nrrd", ".nrrd", oblique()),
        (".nii", ".mha", oblique()),
        (".nrrd", ".nii", None),
    ],
    ids=["NIfTI straight", "NIfTI oblique", "MHA", "NRRD", "NIfTI to MHA", "NRRD to NIfTI"],
)
def test_label_map_of_every_orientation_lies_where_the_canonical_one_does(source, target, rotation, tmp_path):
    affine, truth = affine_of(rotation=rotation), expected(phantom())
    for (scan, grid), (label, label_grid) in segment_all(tmp_path, source, target, affine):
        assert label.shape == scan.shape and label.dtype == np.uint8
        # origin, direction and spacing are those of the file that was read
        exact = 0 if source == ".nii" else DIGITS
        np.testing.assert_allclose(label_grid, grid, rtol=0, atol=exact if source == target else SINGLE)
        np.testing.assert_array_equal(on_grid(label, label_grid, shape=truth.shape, grid=affine), truth)


def test_orientation_changes_nothing_on_a_network_grid_of_another_spacing(tmp_path):
    affine, first = affine_of(rotation=oblique()), None
    for _, (label, label_grid) in segment_all(tmp_path, ".mha", ".mha", affine, spacing=(0.6, 0.65, 0.9)):
        found = on_grid(label, label_grid, shape=phantom().shape, grid=affine)
        first = found if first is None else first  # axes as the canonical scan has them
        np.testing.assert_array_equal(found, first)
    assert set(np.unique(first)) == set(LABEL_VALUES) and (first != expected(phantom())).any()

"""The phantoms are what they say: tubes in one piece, right is right, and hard enough to be worth training on."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest
from scipy import ndimage

from monai_skelrec.datasets import list_cases
from monai_skelrec.phantoms import circle_of_willis, jaw, render, write_phantoms

SHARED = Path(__file__).parents[2] / "shared" / "data"
PEOPLE = range(1, 21)
PAIRS = {2: 3, 4: 6, 5: 7, 8: 9, 11: 12}  # right: left
TOUCHES = {1: (2, 3), 5: (4,), 11: (4,), 8: (2, 4), 9: (3, 6), 10: (11, 12), 15: (10,)}


def components(mask):
    return ndimage.label(mask, np.ones((3, 3, 3)))[1]


@pytest.fixture(scope="module")
def circles():
    return [circle_of_willis(person) for person in PEOPLE]


def test_every_artery_is_one_component_and_all_13_occur(circles):
    seen = set()
    for label in circles:
        values = set(np.unique(label)) - {0}
        seen |= values
        assert all(components(label == value) == 1 for value in values)
        assert components(label > 0) == 1
    assert seen == {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15}


def test_variants_occur_and_a_third_a2_needs_an_acom(circles):
    present = [set(np.unique(label)) for label in circles]
    for value in (8, 9, 10, 15):
        assert 0 < sum(value in values for values in present) < len(present)
    assert all(10 in values for values in present if 15 in values)


def test_right_arteries_lie_to_the_right(circles):
    for label in circles:
        for right, left in PAIRS.items():
            if right in label and left in label:
                assert np.argwhere(label == right)[:, 0].mean() > np.argwhere(label == left)[:, 0].mean() + 3


def test_neighbours_touch(circles):
    for label in circles:
        for value, others in TOUCHES.items():
            if value in label:
                around = ndimage.binary_dilation(label == value, np.ones((3, 3, 3)))
                assert all((label[around] == other).any() for other in others), (value, others)


def test_communicating_arteries_are_one_to_two_voxels_thick(circles):
    for label in circles:
        for value in (8, 9, 10):
            if value in label:
                # no 3 x 3 x 3 block fits into them
                assert not ndimage.binary_erosion(label == value, np.ones((3, 3, 3))).any()


def test_jaw_holds_a_canal_in_one_piece_on_either_side():
    for person in range(1, 9):
        label = jaw(person)
        assert set(np.unique(label)) == {0, 1, 3, 4}
        assert components(label == 3) == components(label == 4) == components(label > 0) == 1
        assert np.argwhere(label == 4)[:, 0].mean() > np.argwhere(label == 3)[:, 0].mean() + 20
        # inside: hardly a voxel of the canal lies next to air
        air = ndimage.binary_dilation(label == 0)
        assert (air & (label > 1)).sum() < 0.05 * (label > 1).sum()


def test_same_seed_same_voxels_other_seed_other_person():
    np.testing.assert_array_equal(circle_of_willis(3), circle_of_willis(3))
    assert (circle_of_willis(3) != circle_of_willis(4)).any()
    label = circle_of_willis(3)
    np.testing.assert_array_equal(render(label, 3), render(label, 3))
    assert (render(label, 3) != render(label, 4)).any()


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_vessels_are_brighter_than_tissue_but_not_everywhere(circles, modality):
    """A threshold finds most of a phantom and not all of it: otherwise nothing could be learned, or nothing need be."""
    for person, label in list(zip(PEOPLE, circles))[:5]:
        image = render(label, person, modality).astype(float)
        inside, outside = image[label > 0], image[label == 0]
        assert inside.mean() > outside.mean() + 3 * outside.std() / 2
        threshold = (inside.mean() + outside.mean()) / 2
        assert 0.02 < (inside < threshold).mean() < 0.6
        assert (outside > threshold).sum() > 50  # clutter and noise


def test_canal_is_darker_than_its_jaw():
    label = jaw(1)
    image = render(label, 1, "cbct").astype(float)
    assert image[label == 1].mean() > image[label > 1].mean() + 100 > image[label == 0].mean() + 100


def test_input_label_map_is_unchanged(circles):
    before = circles[0].copy()
    render(circles[0], 1)
    np.testing.assert_array_equal(circles[0], before)


def test_visible_but_unlabelled_vessels_are_bright_too():
    label, visible = np.zeros((24, 24, 24), np.uint8), np.zeros((24, 24, 24), np.uint8)
    label[4:7, 4:7, 2:22] = 1
    visible[label > 0], visible[16:19, 16:19, 2:22] = 1, 14
    shown, alone = (render(label, 1, visible=v).astype(float)[17, 17, 4:20].mean() for v in (visible, None))
    assert shown > alone + 100


@pytest.mark.parametrize("path", ["topbrain/labels/topcow_ct_001.nii.gz", "topcow_roi/topcow_mr_roi_003.nii.gz"])
def test_real_label_maps_can_be_rendered(path):
    if not (SHARED / path).is_file():
        pytest.skip("needs the development data")
    stored = nibabel.load(SHARED / path)
    everything = (
        np.asarray(stored.dataobj)[60:180, 60:180, 60:140] if "topbrain" in path else np.asarray(stored.dataobj)
    )
    label = np.where(everything <= 15, everything, 0)
    image = render(label, 1, "ct", visible=everything, spacing=stored.header.get_zooms()[:3]).astype(float)
    assert image.shape == label.shape
    assert image[label > 0].mean() > image[everything == 0].mean() + 100


def test_written_phantoms_are_data_sets_of_the_real_layout(tmp_path):
    write_phantoms(str(tmp_path / "cow"), training=2, test=1)
    assert len(list_cases("topcow", str(tmp_path / "cow" / "train"))) == 4
    case = list_cases("topcow", str(tmp_path / "cow" / "test"), modality="ct")[0]
    assert case["name"] == "topcow_ct_003"
    np.testing.assert_array_equal(np.asarray(nibabel.load(case["label"]).dataobj), circle_of_willis(3))
    assert nibabel.aff2axcodes(nibabel.load(case["image"]).affine) == ("R", "A", "S")

    write_phantoms(str(tmp_path / "jaw"), "toothfairy2", training=1, test=1, seed=2)
    case = list_cases("toothfairy2", str(tmp_path / "jaw" / "train"))[0]
    stored = itk.imread(case["label"])
    # ITK: array axes z, y, x; directions to the left and to the back
    np.testing.assert_array_equal(itk.array_from_image(stored).T[::-1, ::-1], jaw(2001))


def test_writing_twice_gives_the_same_files(tmp_path):
    write_phantoms(str(tmp_path), training=1, test=1)
    first = {path: nibabel.load(path).get_fdata() for path in tmp_path.rglob("*.nii.gz")}
    write_phantoms(str(tmp_path), training=1, test=1)
    for path, array in first.items():
        np.testing.assert_array_equal(nibabel.load(path).get_fdata(), array)


def test_nobody_of_an_earlier_call_stays_behind(tmp_path):
    write_phantoms(str(tmp_path), training=2, test=1)
    write_phantoms(str(tmp_path), training=1, test=1)
    assert [case["name"] for case in list_cases("topcow", str(tmp_path / "train"), modality="ct")] == ["topcow_ct_001"]
    assert [case["name"] for case in list_cases("topcow", str(tmp_path / "test"), modality="ct")] == ["topcow_ct_002"]


def test_somebody_elses_folder_is_left_alone(tmp_path):
    (tmp_path / "train" / "imagesTr").mkdir(parents=True)
    (tmp_path / "train" / "imagesTr" / "patient.nii.gz").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="holds other files, such as patient.nii.gz; take another folder"):
        write_phantoms(str(tmp_path), training=1, test=1)
    assert (tmp_path / "train" / "imagesTr" / "patient.nii.gz").read_bytes() == b"precious"


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there are phantoms of the layouts topcow and toothfairy2, got 'folder'"):
        write_phantoms(str(tmp_path), "folder")
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 4"):
        write_phantoms(str(tmp_path), training=0)
    with pytest.raises(ValueError, match="modality must be one of ct, mr, cbct, got 'us'"):
        render(np.zeros((3, 3, 3), int), 0, "us")
    with pytest.raises(ValueError, match=r"must be 3D and of one shape, got \(3, 3\)"):
        render(np.zeros((3, 3), int), 0)

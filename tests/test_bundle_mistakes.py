"""A user's mistakes, each answered with one clear sentence as the last line."""

from __future__ import annotations

import monai.bundle
import nibabel
import numpy as np
import pytest
from bundle_data import CONFIGS, SHAPE, SMALL_BUDGET, SMALL_NETWORK, command, files_of, run_of, save_nifti, write_data

from monai_skelrec.workflows import root_cause


def failure_of(run_id, files, **knobs):
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps each in a RuntimeError of its own
        monai.bundle.run(run_id=run_id, config_file=files, **knobs)
    return root_cause(error.value)


def train_failure(tmp_path, **knobs):
    return failure_of(
        "training",
        files_of("train.yaml"),
        **{**SMALL_BUDGET, **SMALL_NETWORK, "output_dir": str(tmp_path / "run"), "spacing": "$None", **knobs},
    )


@pytest.fixture
def data(tmp_path):
    return write_data("topcow", tmp_path / "data", count=2)


def test_wrong_folder(tmp_path):
    assert train_failure(tmp_path, dataset_dir=str(tmp_path / "nowhere")).endswith(
        "set --dataset_dir to the data's folder."
    )
    assert not (tmp_path / "run").exists()


def test_folder_without_labels(tmp_path, data):
    for path in (data / "cow_seg_labelsTr").iterdir():
        path.unlink()
    assert "has no label" in train_failure(tmp_path, dataset_dir=str(data))


def test_label_values_outside_the_table(tmp_path, data):
    path = data / "cow_seg_labelsTr" / "topcow_ct_001.nii.gz"
    label = np.asarray(nibabel.load(path).dataobj).copy()
    label[0, 0, 0] = 77
    save_nifti(path, label, nibabel.load(path).affine)
    message = train_failure(tmp_path, dataset_dir=str(data), fold="all")
    assert "77" in message and "topcow_ct_001.nii.gz" in message


def test_nan_in_an_image(tmp_path, data):
    path = data / "imagesTr" / "topcow_ct_001_0000.nii.gz"
    image = np.asarray(nibabel.load(path).dataobj).astype(np.float32)
    image[3, 3, 3] = np.nan
    save_nifti(path, image, nibabel.load(path).affine)
    message = train_failure(tmp_path, dataset_dir=str(data), fold="all")
    assert "NaN" in message and "topcow_ct_001_0000.nii.gz" in message


def test_zero_cases_in_a_fold(tmp_path, data):
    assert "5 folds need at least 5 groups" in train_failure(tmp_path, dataset_dir=str(data), folds=5)


def test_existing_run(trained):
    root = trained("topcow")
    assert "holds a run already" in train_failure(root, dataset_dir=str(root / "data"))


def test_patch_that_does_not_divide(tmp_path, data):
    assert "must be a multiple of the strides' product" in train_failure(
        tmp_path, dataset_dir=str(data), patch_size=[32, 32, 31]
    )


@pytest.mark.parametrize("base, run_id", [("evaluate.yaml", "evaluating"), ("inference.json", "inferring")])
def test_missing_checkpoint_and_checkpoint_of_another_network(base, run_id, trained):
    root = trained("topcow")
    scans = root / "data" if base == "evaluate.yaml" else root / "data" / "imagesTr"
    knobs = {"dataset_dir": str(scans), "output_dir": str(root / "failed")}
    files = run_of(root, base)
    assert "is not there; train first" in failure_of(run_id, files, **knobs, checkpoint="models/none.pt")
    message = failure_of(run_id, files, **knobs, class_names=["background", "vessel"], label_values=[0, 1])
    assert "belongs to another network" in message and "output_block" in message
    assert "belongs to another network" in failure_of(run_id, files, **knobs, filters=[4, 8, 8])


def test_inference_names_what_is_wrong_with_a_folder(trained, tmp_path):
    root = trained("topcow")
    files, out = run_of(root, "inference.json"), str(tmp_path / "out")
    message = failure_of("inferring", files, dataset_dir=str(tmp_path / "nowhere"), output_dir=out)
    assert "nowhere' is not a folder" in message
    (tmp_path / "empty").mkdir()
    message = failure_of("inferring", files, dataset_dir=str(tmp_path / "empty"), output_dir=out)
    assert "holds no scan of task 'topcow'" in message
    for name in ("a.nii", "a.nii.gz"):
        save_nifti(tmp_path / "twice" / name, np.zeros(SHAPE, np.uint8))
    message = failure_of("inferring", files, dataset_dir=str(tmp_path / "twice"), output_dir=out)
    assert "several files give a label map of the name 'a'" in message


@pytest.mark.parametrize("scan", ["4D", "NaN"])
def test_inference_refuses_a_scan_it_cannot_use(scan, trained, tmp_path):
    root = trained("topcow")
    image = np.ones((*SHAPE, 3) if scan == "4D" else SHAPE, np.float32)
    if scan == "NaN":
        image[0, 0, 0] = np.nan
    save_nifti(tmp_path / "in" / "odd.nii.gz", image)
    message = failure_of(
        "inferring", run_of(root, "inference.json"), dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "out")
    )
    assert "odd.nii.gz" in message and "expected 1 channel(s), 3 dimensions and finite values" in message


@pytest.mark.parametrize(
    "base, run_id", [("train.yaml", "training"), ("evaluate.yaml", "evaluating"), ("inference.json", "inferring")]
)
def test_misspelt_knob_ends_the_run_with_one_sentence(base, run_id, tmp_path):
    done = command(run_id, "--config_file", CONFIGS / base, "--dataset_dri", tmp_path, cwd=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: --dataset_dri is no name of this bundle") and "--dataset_dir" in last

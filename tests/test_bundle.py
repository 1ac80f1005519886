"""The bundle as a user starts it: every task trains, is evaluated and infers on small data of its own layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import itk
import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from PIL import Image

from monai_skelrec import circle_of_willis, jaw, render
from monai_skelrec.workflows import FACTS, root_cause

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"
SCHEMA = ROOT.parent / "shared" / "data" / "schema" / "meta_schema_20240725.json"
TASKS = ("topcow", "topcow_binary", "toothfairy", "toothfairy2", "folder", "folder_2d")
SHAPE = (36, 40, 32)

# two steps of a network of three levels: enough to see every file, far too little to learn
SMALL_NETWORK = {
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "kernel_size": [[3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "filters": [4, 6, 8],
    "patch_size": [32, 32, 32],
}
SMALL_NETWORK_2D = SMALL_NETWORK | {"strides": [1, 2, 2], "kernel_size": [3, 3, 3], "patch_size": [32, 32]}
SMALL_BUDGET = {"epochs": 1, "iterations_per_epoch": 2, "val_interval": 1, "num_workers": 0, "overlap": 0.1, "folds": 2}


def small_network(task):
    return SMALL_NETWORK_2D if task == "folder_2d" else SMALL_NETWORK


def files_of(base, *others):
    return [str(CONFIGS / base), *(str(CONFIGS / other) for other in others)]


def overlay(task):
    return () if task == "topcow" else (f"{task}.yaml",)


# --- data of each task -----------------------------------------------------------------------------------------------


def save_nifti(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([0.8, 0.8, 1.2, 1]) if affine is None else affine), path)


def save_mha(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = itk.image_from_array(np.ascontiguousarray(array.T))
    picture.SetSpacing([0.6, 0.6, 0.6])
    picture.SetOrigin([5, -3, 2])
    itk.imwrite(picture, str(path))


def save_npy(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def save_picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_data(task, root, count=4):
    """A data set of ``count`` cases in the layout of a task; spacing and values as the task has them."""
    for number in range(1, count + 1):
        if task.startswith("topcow"):
            label = circle_of_willis(number, SHAPE, 1.5)
            # stored to the left and to the back, as TopCoW's files are
            affine = np.diag([-0.8, -0.8, 1.2, 1])
            save_nifti(root / "imagesTr" / f"topcow_ct_{number:03d}_0000.nii.gz", render(label, number), affine)
            save_nifti(root / "cow_seg_labelsTr" / f"topcow_ct_{number:03d}.nii.gz", label, affine)
        elif task == "toothfairy":
            label = jaw(number, SHAPE, 2.0)
            save_npy(root / f"P{number}" / "data.npy", render(label, number, "cbct").astype(float))
            save_npy(root / f"P{number}" / "gt_alpha.npy", (label > 1).astype(np.uint8))
        elif task == "toothfairy2":
            label = jaw(number, SHAPE, 2.0)
            save_mha(root / "imagesTr" / f"ToothFairy2F_{number:03d}_0000.mha", render(label, number, "cbct"))
            save_mha(root / "labelsTr" / f"ToothFairy2F_{number:03d}.mha", label)
        elif task == "folder":
            label = circle_of_willis(number, SHAPE, 1.5)
            ending = (".nii.gz", ".mha", ".nrrd", ".nii")[number % 4]
            save = save_mha if ending in (".mha", ".nrrd") else save_nifti
            save(root / "images" / f"scan.{number}{ending}", render(label, number))
            save(root / "labels" / f"scan.{number}{ending}", (label > 0).astype(np.uint8))
        else:
            label = (circle_of_willis(number, (48, 40, 32), 1.5) > 0).any(axis=2)
            grey = (60 + 120 * label + np.random.default_rng(number).normal(0, 9, label.shape)).astype(np.uint8)
            save_picture(root / "images" / f"{number}.tif", np.stack([grey] * 3, axis=-1))
            ending = ("png", "gif")[number % 2]
            save_picture(root / "labels" / f"{number}.{ending}", (255 * label).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """For each task its data and a folder with a trained run; made once."""
    made = {}

    def of(task):
        if task not in made:
            root = tmp_path_factory.mktemp(task)
            spacing = {} if task.startswith("folder") else {"spacing": [1.0, 1.0, 1.0]}
            monai.bundle.run(
                run_id="training",
                config_file=files_of("train.yaml", *overlay(task)),
                dataset_dir=str(write_data(task, root / "data")),
                output_dir=str(root / "run"),
                **SMALL_BUDGET,
                **small_network(task),
                **spacing,
            )
            made[task] = root
        return made[task]

    return of


def run_of(root, base):
    return [str(CONFIGS / base), str(root / "run" / "task.yaml")]


def scans_dir(task, root):
    return {"toothfairy": root / "data", "folder": root / "data" / "images", "folder_2d": root / "data" / "images"}.get(
        task, root / "data" / "imagesTr"
    )


# --- the three workflows, for every task -----------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_training_leaves_weights_scores_and_what_was_run(task, trained):
    run = trained(task) / "run"
    for name in ("model.pt", "last.pt", "config.yaml", "task.yaml", "validation/val_mean_dice_raw.csv"):
        assert (run / name).is_file(), name
    assert list((run / "tensorboard").glob("events.*"))
    rows = (run / "validation" / "val_centerline_dice_raw.csv").read_text().splitlines()
    assert len(rows) == 1 + 2  # a heading, and the two cases of the held-out fold
    facts = yaml.safe_load((run / "task.yaml").read_text())
    assert set(FACTS) <= set(facts) and facts["task"] == task and os.path.isabs(facts["checkpoint"])


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_scores_the_held_out_fold(task, trained):
    root = trained(task)
    monai.bundle.run(
        run_id="evaluating",
        config_file=run_of(root, "evaluate.yaml"),
        dataset_dir=str(root / "data"),
        output_dir=str(root / "evaluation"),
    )
    predictions = sorted(path.name for path in (root / "evaluation" / "predictions").iterdir())
    assert len(predictions) == 2  # of two folds of four cases
    rows = (root / "evaluation" / "scores.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {strip(name) for name in predictions}
    assert list((root / "evaluation").rglob("*.png"))


def strip(name):
    for ending in (".nii.gz", ".mha", ".png"):
        name = name.removesuffix(ending)
    return name


@pytest.mark.parametrize("task", TASKS)
def test_inference_writes_label_maps_on_the_grid_of_the_scans(task, trained):
    root = trained(task)
    monai.bundle.run(
        run_id="inferring",
        config_file=run_of(root, "inference.json"),
        dataset_dir=str(scans_dir(task, root)),
        output_dir=str(root / "out"),
    )
    facts = yaml.safe_load((root / "run" / "task.yaml").read_text())
    written = sorted((root / "out").iterdir())
    assert len(written) == 4
    if task in ("topcow", "topcow_binary"):
        for path in written:
            assert path.name.endswith(".nii.gz") and "_0000" not in path.name
            scan = nibabel.load(root / "data" / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
            label_map = nibabel.load(path)
            assert label_map.shape == scan.shape and label_map.get_data_dtype() == np.uint8
            np.testing.assert_allclose(label_map.affine, scan.affine, atol=1e-5)
            assert set(np.unique(label_map.dataobj)) <= set(facts["label_values"])
            through_itk = itk.imread(str(path))
            np.testing.assert_array_equal(itk.array_from_image(through_itk).T, np.asarray(label_map.dataobj))
    elif task == "toothfairy2":
        for path in written:
            scan = itk.imread(str(root / "data" / "imagesTr" / path.name.replace(".mha", "_0000.mha")))
            label_map = itk.imread(str(path))
            assert itk.array_from_image(label_map).dtype == np.uint8
            assert itk.size(label_map) == itk.size(scan)
            for of in (itk.origin, itk.spacing):
                np.testing.assert_allclose(of(label_map), of(scan), atol=1e-5)
            np.testing.assert_allclose(
                itk.array_from_matrix(label_map.GetDirection()), itk.array_from_matrix(scan.GetDirection()), atol=1e-5
            )
            assert set(np.unique(itk.array_from_image(label_map))) <= {0, 1, 3, 4}
    elif task == "toothfairy":
        assert [path.name for path in written] == ["P1.nii.gz", "P2.nii.gz", "P3.nii.gz", "P4.nii.gz"]
        for path in written:
            label_map = nibabel.load(path)
            assert label_map.shape == np.load(root / "data" / strip(path.name) / "data.npy").shape
            np.testing.assert_allclose(label_map.header.get_zooms(), 0.3, atol=1e-6)
    elif task == "folder":
        assert [path.name for path in written] == [f"scan.{number}.nii.gz" for number in (1, 2, 3, 4)]
        assert all(nibabel.load(path).shape == SHAPE for path in written)
    else:
        for path in written:
            label_map = Image.open(path)
            assert label_map.size == Image.open(root / "data" / "images" / f"{path.stem}.tif").size
            assert set(np.unique(np.asarray(label_map))) <= {0, 255}


def test_label_map_of_a_turned_scan_is_turned_alike(trained, tmp_path):
    """One scan stored in two orientations: the label maps agree in space."""
    root = trained("topcow")
    scan = nibabel.load(next((root / "data" / "imagesTr").glob("*.nii.gz")))
    turned = scan.as_reoriented(nibabel.orientations.axcodes2ornt(("P", "S", "R")))
    for name, stored in (("straight", scan), ("turned", turned)):
        save_nifti(tmp_path / "in" / f"{name}.nii.gz", np.asarray(stored.dataobj), stored.affine)
    monai.bundle.run(
        run_id="inferring",
        config_file=run_of(root, "inference.json"),
        dataset_dir=str(tmp_path / "in"),
        output_dir=str(tmp_path / "out"),
    )
    straight, other = (
        nibabel.as_closest_canonical(nibabel.load(tmp_path / "out" / f"{name}.nii.gz"))
        for name in ("straight", "turned")
    )
    agreement = (np.asarray(straight.dataobj) == np.asarray(other.dataobj)).mean()
    assert agreement > 0.999


# --- what MONAI's own tools ask of a bundle --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base, kind", [("train.yaml", "train"), ("evaluate.yaml", "infer"), ("inference.json", "infer")]
)
def test_names_are_those_that_monai_looks_for(base, kind, trained):
    root = trained("topcow")
    workflow = ConfigWorkflow(
        workflow_type=kind,
        config_file=files_of(base),
        logging_file=False,
        bundle_root=str(BUNDLE),
        dataset_dir=str(root / "data"),
        checkpoint=str(root / "run" / "model.pt"),
        output_dir=str(root / "checked"),
        **({} if base == "inference.json" else {"folds": 2}),
        **small_network("topcow"),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_metadata_fits_the_schema(tmp_path):
    if not SCHEMA.is_file():
        pytest.skip("needs the development data")
    monai.bundle.verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(SCHEMA))


def test_metadata_describes_every_task():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    for task in TASKS:
        facts = ConfigParser.load_config_files(files_of("inference.json", *overlay(task)))
        described = metadata["network_data_format" if task == "topcow" else f"{task}_data_format"]
        outputs, inputs = described["outputs"]["pred"], described["inputs"]["image"]
        assert list(outputs["channel_def"].values()) == facts["class_names"]
        assert outputs["num_channels"] == len(facts["class_names"])
        assert inputs["num_channels"] == facts["in_channels"]
        assert inputs["spatial_shape"] == outputs["spatial_shape"] == facts["patch_size"]


def test_network_takes_what_the_metadata_says():
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=files_of("inference.json"),
        device="cpu",
        # the patch at its real size takes a minute here; a smaller one has the same channels
        **{"_meta_::network_data_format::inputs::image::spatial_shape": [64, 64, 32]},
        **{"_meta_::network_data_format::outputs::pred::spatial_shape": [64, 64, 32]},
    )


def test_exported_network_gives_the_same_logits(trained, tmp_path):
    root = trained("topcow")
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(root / "run" / "model.pt"),
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=run_of(root, "inference.json"),
    )
    parser = ConfigParser()
    parser.read_config(run_of(root, "inference.json"))
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(root / "run" / "model.pt", weights_only=True))
    scan = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(str(tmp_path / "model.ts"))(scan), network(scan))


def test_load_returns_the_network(tmp_path):
    parser = ConfigParser()
    parser.read_config(files_of("inference.json"))
    weights = parser.get_parsed_content("network_def").state_dict()
    (tmp_path / "skelrec" / "models").mkdir(parents=True)
    (tmp_path / "skelrec" / "configs").symlink_to(CONFIGS)
    torch.save(weights, tmp_path / "skelrec" / "models" / "model.pt")
    network = monai.bundle.load("skelrec", bundle_dir=str(tmp_path), workflow_type="inference")
    assert isinstance(network, torch.nn.Module)
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name])


def test_bases_and_runs_agree_on_facts_and_network():
    bases = [
        ConfigParser.load_config_files(files_of(base)) for base in ("train.yaml", "evaluate.yaml", "inference.json")
    ]
    for name in (*FACTS, "network_def"):
        assert bases[0][name] == bases[1][name] == bases[2][name], name


def words_of(content):
    """Every string in a configuration, however deep."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        return [word for item in content for word in words_of(item)]
    return [content] if isinstance(content, str) else []


@pytest.mark.parametrize("task", TASKS[1:])
def test_a_task_file_holds_facts_only(task):
    facts = ConfigParser.load_config_files(files_of(f"{task}.yaml"))
    assert set(facts) <= set(FACTS)
    assert not any(value.startswith("$") for value in words_of(facts))
    assert facts["task"] == task


def test_inference_needs_no_monai_skelrec_and_lists_its_own_names():
    text = (CONFIGS / "inference.json").read_text()
    assert "monai_skelrec" not in text
    config = json.loads(text)
    hidden = {"imports", "initialize", "inferring", "run", "stop", "usable", "checkpoint_path", "root_cause_last"}
    hidden |= {"knobs", "unknown", "names", "doubled", "weights", "misfits"}
    assert {name for name in config if not name.startswith("_")} - hidden <= set(config["knobs"])


# --- a run and its second life ---------------------------------------------------------------------------------------


def test_resumed_training_equals_an_uninterrupted_one(tmp_path):
    data = str(write_data("topcow", tmp_path / "data"))

    def train(folder, epochs, **knobs):
        monai.bundle.run(
            run_id="training",
            config_file=files_of("train.yaml"),
            dataset_dir=data,
            output_dir=str(tmp_path / folder),
            **{**SMALL_BUDGET, **SMALL_NETWORK, "epochs": epochs, "spacing": [1.0, 1.0, 1.0], **knobs},
        )
        return torch.load(tmp_path / folder / "last.pt", weights_only=True)

    # the schedule of the whole run also in its first part
    schedule = {
        "lr_scheduler": {
            "_target_": "torch.optim.lr_scheduler.PolynomialLR",
            "optimizer": "@optimizer",
            "total_iters": 3,
        }
    }
    whole = train("whole", 3, **schedule)
    train("parts", 2, **schedule)
    parts = train("parts", 3, resume=True, **schedule)
    assert parts["epoch"] == 3
    for name, value in whole["network"].items():
        assert torch.equal(value, parts["network"][name]), name


def test_written_config_gives_the_same_model_again(trained, tmp_path):
    run = trained("topcow") / "run"
    monai.bundle.run(
        run_id="training",
        config_file=files_of("train.yaml") + [str(run / "config.yaml")],
        output_dir=str(tmp_path / "again"),
    )
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (run, tmp_path / "again"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# --- mistakes --------------------------------------------------------------------------------------------------------


def failure_of(run_id, files, **knobs):
    with pytest.raises(Exception) as error:  # noqa: B017 - MONAI wraps each in a RuntimeError of its own
        monai.bundle.run(run_id=run_id, config_file=files, **knobs)
    return root_cause(error.value)


def train_failure(tmp_path, **knobs):
    return failure_of(
        "training",
        files_of("train.yaml"),
        **{**SMALL_BUDGET, **SMALL_NETWORK, "output_dir": str(tmp_path / "run"), "spacing": None, **knobs},
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
    assert "several scans have the name 'a'" in message


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


# --- the command line, in a process of its own -----------------------------------------------------------------------


def command(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.parametrize("where", ["the bundle", "the repository", "anywhere"])
def test_bundle_runs_from_any_folder(where, trained, tmp_path):
    root = trained("topcow")
    (tmp_path / "models").mkdir()
    cwd, configs = {
        "the bundle": (BUNDLE, "configs"),
        "the repository": (ROOT, "bundle/configs"),
        "anywhere": (tmp_path, CONFIGS),
    }[where]
    arguments = ["inferring", "--config_file", f"['{configs}/inference.json', '{root}/run/task.yaml']"]
    arguments += ["--dataset_dir", root / "data" / "imagesTr", "--output_dir", tmp_path / "out"]
    if where == "anywhere":
        arguments += ["--bundle_root", BUNDLE]
    done = command(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize(
    "base, run_id", [("train.yaml", "training"), ("evaluate.yaml", "evaluating"), ("inference.json", "inferring")]
)
def test_misspelt_knob_ends_the_run_with_one_sentence(base, run_id, tmp_path):
    done = command(run_id, "--config_file", CONFIGS / base, "--dataset_dri", tmp_path, cwd=tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: --dataset_dri is no name of this bundle") and "--dataset_dir" in last

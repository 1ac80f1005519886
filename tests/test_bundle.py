"""The bundle as a user starts it: every task trains, is evaluated and infers on small data of its own layout."""

from __future__ import annotations

import json
import os

import itk
import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from bundle_data import (
    BUNDLE,
    CONFIGS,
    ROOT,
    SCHEMA,
    SHAPE,
    SMALL_BUDGET,
    SMALL_NETWORK,
    TASKS,
    command,
    files_of,
    overlay,
    run_of,
    save_nifti,
    small_network,
    write_data,
)
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.inferers import SlidingWindowInferer
from PIL import Image

from monai_skelrec.inferers import MirroringInferer
from monai_skelrec.workflows import FACTS, RECIPE


def scans_dir(task, root):
    folders = {"toothfairy": ".", "drive": "training/images", "roads": "train/sat"}
    folders |= {task: "images" for task in ("folder", "folder_2d", "cracks")}
    return root / "data" / folders.get(task, "imagesTr")


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
    report = (root / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert f"Evaluation: {task}" in report and "data:image/png" in report


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
            scan = next(scans_dir(task, root).glob(f"{path.stem}[._]*"))
            assert label_map.size == Image.open(scan).size
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


def test_evaluation_predicts_as_inference_does():
    """The same steps with the same options; only the check of a scan and what is printed may differ."""
    evaluate, inference = (
        ConfigParser.load_config_files(files_of(base)) for base in ("evaluate.yaml", "inference.json")
    )
    for part in ("preprocessing", "postprocessing"):
        steps = []
        for config in (evaluate, inference):
            steps.append([])
            for step in config[part]["transforms"]:
                kind = step if isinstance(step, str) else step["_target_"]
                if kind == "monai_skelrec.CheckScand" or (kind == "Lambdad" and step["func"] == "@usable"):
                    continue
                options = {} if isinstance(step, str) else {**step, "func": None, "print_log": None, "output_dir": None}
                steps[-1].append((kind, options))
        assert steps[0] == steps[1]
    # evaluation can average over mirror images, which plain MONAI cannot, and does not unless it is told to
    ours, theirs = dict(evaluate["inferer"]["inferer"]), dict(inference["inferer"])
    assert (ours.pop("_target_"), theirs.pop("_target_")) == (
        "monai_skelrec.inferers.MirroringInferer",
        "SlidingWindowInferer",
    )
    assert evaluate["mirror"] is False
    assert (ours.pop("class_names"), ours.pop("mirror_pairs")) == ("@class_names", "@mirror_pairs")
    assert ours.pop("mirror_axes") == {
        "_target_": "monai_skelrec.inferers.axes_to_mirror",
        "mirror": "@mirror",
        "mirror_axes": "@mirror_axes",
    }
    assert ours == theirs and issubclass(MirroringInferer, SlidingWindowInferer)


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
    assert set(facts) <= {*FACTS, *RECIPE}
    assert not any(value.startswith("$") for value in words_of(facts))
    assert facts["task"] == task


def test_inference_needs_no_monai_skelrec_and_lists_its_own_names():
    text = (CONFIGS / "inference.json").read_text()
    assert "monai_skelrec" not in text
    config = json.loads(text)
    hidden = {"imports", "initialize", "inferring", "run", "stop", "usable", "checkpoint_path", "root_cause_last"}
    hidden |= {"knobs", "unknown", "misread", "from_command_line", "names", "doubled", "weights", "misfits"}
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


def test_training_begins_with_the_weights_of_another_run(trained, tmp_path):
    source = trained("topcow")
    monai.bundle.run(
        run_id="training",
        config_file=files_of("train.yaml") + [str(source / "run" / "config.yaml")],
        output_dir=str(tmp_path / "again"),
        start_from=str(source / "run" / "last.pt"),
        learning_rate=0.0,
        epochs=1,
    )
    before, after = (torch.load(run / "last.pt", weights_only=True) for run in (source / "run", tmp_path / "again"))
    assert after["epoch"] == 1
    torch.testing.assert_close(after["network"], before["network"], rtol=0, atol=0)


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

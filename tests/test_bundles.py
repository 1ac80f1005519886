"""A zipped bundle of one task, and the steps that tools take with it, replayed."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from bundle_data import BUNDLE, CONFIGS, SCHEMA, SHAPE, SMALL_NETWORK, files_of, overlay, write_data
from monai.bundle import ConfigItem, ConfigParser, ConfigWorkflow
from monai.data import MetaTensor, decollate_batch
from monai.transforms import Compose, LoadImaged, MapTransform, SaveImaged
from monai.utils import first

from monai_skelrec.bundles import bundle_name, pack_bundle

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Zipped bundles of runs that never trained: small networks with drawn weights."""
    made = {}

    def of(task: str) -> tuple[Path, Path]:
        if task not in made:
            root = tmp_path_factory.mktemp(task)
            small = {**SMALL_NETWORK, "spacing": [1.0, 1.0, 1.0], "network_def": None}
            facts = ConfigParser.load_config_files(files_of("inference.json", *overlay(task))) | small
            del facts["network_def"]
            parser = ConfigParser()
            parser.read_config(files_of("inference.json", *overlay(task)))
            for name, value in SMALL_NETWORK.items():
                parser[name] = value
            torch.manual_seed(0)
            network = parser.get_parsed_content("network_def")
            (root / "run").mkdir()
            torch.save(network.state_dict(), root / "run" / "model.pt")
            known = {name: facts[name] for name in (*SMALL_NETWORK, "spacing", "task", "class_names", "label_values")}
            (root / "run" / "task.yaml").write_text(yaml.safe_dump(known | {"checkpoint": str(root / "run/model.pt")}))
            path = pack_bundle(task, root / "zips", run_dir=root / "run", bundle_root=BUNDLE, torchscript=True)
            with zipfile.ZipFile(path) as archive:
                archive.extractall(root / "unpacked")
            write_data(task, root / "data", count=1)
            made[task] = path, root / "unpacked" / bundle_name(task)
        return made[task]

    return of


def scan_of(folder: Path) -> Path:
    return next((folder.parents[1] / "data" / "imagesTr").iterdir())


# --- what is in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["topcow", "toothfairy2"])
def test_the_zip_holds_one_folder_of_its_own_name_with_all_that_a_bundle_needs(task, packed):
    path, folder = packed(task)
    assert path.name == f"{task}_skelrec_segmentation.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {f"{task}_skelrec_segmentation"}
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt", "models/model.pt", "models/model.ts"):
        assert (folder / name).is_file(), name
    for name in ("inference.json", "metadata.json", "logging.conf", "train.yaml", "evaluate.yaml", "task.yaml"):
        assert (folder / "configs" / name).is_file(), name
    config = json.loads((folder / "configs" / "inference.json").read_text())
    assert config["task"] == task and config["checkpoint"] == "models/model.pt" and config["output_ext"] == ".nii.gz"
    facts = yaml.safe_load((folder / "configs" / "task.yaml").read_text())
    assert all(config[name] == value for name, value in facts.items()) and "intensity" in facts


@pytest.mark.parametrize("task", ["topcow", "toothfairy2"])
def test_its_metadata_fit_the_schema_and_the_network(task, packed):
    _, folder = packed(task)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    assert [name for name in metadata if name.endswith("_data_format")] == ["network_data_format"]
    config = json.loads((folder / "configs" / "inference.json").read_text())
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert list(outputs["channel_def"].values()) == config["class_names"]
    modality = metadata["network_data_format"]["inputs"]["image"]["modality"]
    assert modality == ("CTA, MRA" if task == "topcow" else "CBCT")
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(folder / "configs" / "metadata.json"),
        config_file=str(folder / "configs" / "inference.json"),
        device="cpu",
    )
    if not SCHEMA.is_file():
        pytest.skip("needs the development data")
    monai.bundle.verify_metadata(meta_file=str(folder / "configs" / "metadata.json"), filepath=str(SCHEMA))


def test_its_parts_are_those_that_monai_looks_for(packed):
    _, folder = packed("topcow")
    workflow = ConfigWorkflow(
        workflow_type="infer",
        config_file=str(folder / "configs" / "inference.json"),
        logging_file=False,
        bundle_root=str(folder),
        dataset_dir=str(scan_of(folder).parent),
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_without_a_run_the_weights_of_the_bundle_go_in(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_folder.pt' are not there; train first, and give --run_dir"):
        pack_bundle("folder", tmp_path, bundle_root=BUNDLE)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_told_and_leave_nothing(packed, tmp_path):
    path, _ = packed("topcow")
    run = path.parents[1] / "run"
    with pytest.raises(FileNotFoundError, match="liver.yaml' is not there; name a task of"):
        pack_bundle("liver", tmp_path, bundle_root=BUNDLE)
    with pytest.raises(ValueError, match="task.yaml' is of task 'topcow', not 'toothfairy2'"):
        pack_bundle("toothfairy2", tmp_path, run_dir=run, bundle_root=BUNDLE)
    other = tmp_path / "other"
    other.mkdir()
    (other / "task.yaml").write_text("task: topcow\n")
    torch.save(torch.load(run / "model.pt", weights_only=True), other / "model.pt")
    with pytest.raises(ValueError, match="belongs to another network"):
        pack_bundle("topcow", tmp_path / "out", run_dir=other, bundle_root=BUNDLE)
    assert list((tmp_path / "out").iterdir()) == []


def test_one_run_packs_it(packed, tmp_path):
    path, folder = packed("topcow")
    monai.bundle.run(
        run_id="packaging",
        config_file=str(CONFIGS / "packaging.yaml"),
        run_dir=str(path.parents[1] / "run"),
        output_dir=str(tmp_path),
        bundle_root=str(BUNDLE),
    )
    with zipfile.ZipFile(tmp_path / path.name) as archive:
        name = f"{folder.name}/configs/inference.json"
        assert archive.read(name) == (folder / "configs" / "inference.json").read_bytes()


# --- MONAI's own ways ------------------------------------------------------------------------------------------------


def test_it_installs_from_a_file_url_and_loads(packed, tmp_path):
    path, folder = packed("topcow")
    monai.bundle.download(
        name=folder.name, source="github", url=path.as_uri(), bundle_dir=str(tmp_path), progress=False
    )
    network = monai.bundle.load(folder.name, bundle_dir=str(tmp_path), workflow_type="inference", device="cpu")
    weights = torch.load(path.parents[1] / "run" / "model.pt", weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_it_runs_where_monai_skelrec_is_not_installed(packed, tmp_path):
    _, folder = packed("topcow")
    blocked = "import sys; sys.modules['monai_skelrec'] = None; from monai.bundle import run; "
    call = f"run(config_file='configs/inference.json', dataset_dir={str(scan_of(folder).parent)!r}, "
    call += f"output_dir={str(tmp_path)!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", blocked + call],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.iterdir()
    check_label_map(np.asarray(nibabel.load(written).dataobj), folder)


def check_label_map(label_map, folder):
    facts = yaml.safe_load((folder / "configs" / "task.yaml").read_text())
    assert label_map.shape == SHAPE and set(np.unique(label_map)) <= set(facts["label_values"])


@pytest.mark.skipif(not HAS_ONNX, reason="needs onnx and onnxscript")
def test_its_network_is_exported_to_onnx(packed, tmp_path):
    _, folder = packed("topcow")
    monai.bundle.onnx_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.onnx"),
        ckpt_file=str(folder / "models" / "model.pt"),
        meta_file=str(folder / "configs" / "metadata.json"),
        config_file=str(folder / "configs" / "inference.json"),
        input_shape=[1, 1, 32, 32, 32],
    )
    assert (tmp_path / "model.onnx").stat().st_size > 1000


# --- 3D Slicer: MONAIAuto3DSeg's script for bundles ------------------------------------------------------------------


@pytest.mark.parametrize("task", ["topcow", "toothfairy2"])
@pytest.mark.parametrize("name", ["input-volume0.nrrd", "case.nii.gz"])
def test_slicer_gets_a_nifti_file_for_a_scan_of_any_name(task, name, packed, tmp_path):
    """It sets a few names of inference.json, builds the evaluator without ``initialize``, and looks for .nii.gz."""
    import itk

    _, folder = packed(task)
    itk.imwrite(itk.imread(str(scan_of(folder))), str(tmp_path / name))
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    for key, value in {
        "bundle_root": str(folder),
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "datalist": [str(tmp_path / name)],
        "window_device": "cpu",
        "device": torch.device("cpu"),
    }.items():
        parser[key] = value
    parser["inferer"]["device"] = torch.device("cpu")
    parser["dataloader"]["num_workers"] = 0
    assert len(parser.get_parsed_content("dataloader")) == 1
    parser.get_parsed_content("evaluator").run()
    (written,) = (tmp_path / "out").rglob("*.nii.gz")
    assert written.name == f"{name.split('.')[0]}.nii.gz"
    check_label_map(np.asarray(nibabel.load(written).dataobj), folder)


# --- MONAI Label: BundleInferTask ------------------------------------------------------------------------------------


def test_monai_label_segments_a_scan(packed):
    """It takes the parts of inference.json one by one, leaves out SaveImaged, and loads the weights itself."""
    _, folder = packed("topcow")
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    parser.config.update({"bundle_root": str(folder)})
    network = parser.get_parsed_content("network_def", instantiate=True)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    key_image, image_format = next(iter(metadata["network_data_format"]["inputs"].items()))
    key_pred, pred_format = next(iter(metadata["network_data_format"]["outputs"].items()))
    labels = {name.lower() for name in pred_format["channel_def"].values()} - {"background"}
    assert len(labels) == 13 and len(image_format["spatial_shape"]) == 3
    parser.config.update({"device": "cpu"})
    if parser.ref_resolver.items.get("device"):
        parser.ref_resolver.items["device"] = ConfigItem(config="cpu", id="device")

    data = {key_image: str(scan_of(folder))}
    for transform in parser.get_parsed_content("preprocessing", instantiate=True).transforms:
        data = transform(data)
    network = copy.deepcopy(network).to("cpu")
    network.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True), strict=True)
    network.eval()
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    with torch.no_grad():
        data[key_pred] = decollate_batch(inferer(data[key_image][None], network))[0]
    after = parser.get_parsed_content("postprocessing", instantiate=True).transforms
    data = Compose([transform for transform in after if not isinstance(transform, SaveImaged)])(data)
    check_label_map(data[key_pred][0].numpy(), folder)
    scan = nibabel.load(scan_of(folder))
    np.testing.assert_allclose(data[key_pred].affine.numpy(), scan.affine, atol=1e-5)


# --- MONAI Deploy: MonaiBundleInferenceOperator ----------------------------------------------------------------------


def test_monai_deploy_segments_an_image_in_memory(packed):
    """It reads model.ts alone, leaves out LoadImaged and SaveImaged, and hands over an array without a channel."""
    _, folder = packed("topcow")
    path = folder / "models" / "model.ts"
    parser = ConfigParser()
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as work:
        parser.read_meta(f=json.loads(archive.read("model/extra/metadata.json")))
        archive.extract("model/extra/inference.json", work)
        parser.read_config([Path(work) / "model/extra/inference.json"])
    parser.parse()
    device = parser.get_parsed_content("device")
    inferer = parser.get_parsed_content("inferer")

    def composed(name: str) -> Compose:
        compose = parser.get_parsed_content(name)
        steps = compose.transforms
        compose.transforms = tuple(
            step for step in steps if not any(word in type(step).__name__ for word in ("LoadImage", "SaveImage"))
        )
        assert len(compose.transforms) < len(steps) and isinstance(first(compose.transforms), MapTransform)
        return compose

    before, after = composed("preprocessing"), composed("postprocessing")
    assert not any(isinstance(step, LoadImaged) for step in before.transforms)
    (name,) = parser["_meta_"]["network_data_format"]["inputs"]
    (out,) = parser["_meta_"]["network_data_format"]["outputs"]
    scan = nibabel.load(scan_of(folder))
    # what the operator makes of a DICOM series: nothing about a file
    meta = {"affine": scan.affine, "original_affine": scan.affine.copy(), "space": "LPS"}
    meta |= {"spatial_shape": np.asarray(scan.shape), "original_channel_dim": "no_channel"}
    image = MetaTensor.ensure_torch_and_prune_meta(np.asarray(scan.dataobj, np.float32), meta)

    inputs = before({name: image})
    network = torch.jit.load(str(path), map_location=device).eval()
    with torch.no_grad():
        outputs = inferer(inputs=inputs[name][None].to(device), network=network)
    # the operator hands on the first item of what the inferer gave
    made = after({out: outputs[0], name: inputs[name]})
    check_label_map(np.squeeze(made[out].cpu().numpy(), 0), folder)

"""Step "model.pt -> bundle of one task": everything that tools which know MONAI bundles ask for, in one zip."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monai.bundle
import torch
import yaml
from monai.bundle import ConfigParser

from .checkpoints import WEIGHTS, refuse_other_network
from .files import replace
from .workflows import FACTS, TASK

__all__ = ["bundle_name", "pack_bundle"]

# configs that a bundle of one task needs; those of other tasks and of benchmarks stay here
_CONFIGS = (
    "train.yaml",
    "evaluate.yaml",
    "scans.yaml",
    "multi_gpu_train.yaml",
    "multi_gpu_evaluate.yaml",
    "logging.conf",
)
# facts whose new value must reach the metadata, and the definition of the network, which a run may have replaced
_MERGED = (*FACTS, "network_def")
_CHECKPOINT = "models/model.pt"
_HEADING = (
    "# The facts of this bundle's task: lay it over train.yaml or evaluate.yaml; inference.json holds them already."
)


def bundle_name(task: str) -> str:
    """Name of a task's bundle and of its folder; MONAI Label reads the kind of model from it."""
    return f"{task}_skelrec_segmentation"


def pack_bundle(
    task: str,
    output_dir: str | Path,
    *,
    run_dir: str | Path | None = None,
    bundle_root: str | Path = "bundle",
    torchscript: bool = False,
) -> Path:
    """Write a task's bundle as ``output_dir/NAME.zip``, where NAME is that of its folder too.

    ``inference.json`` is base and task in one and plain MONAI; the task's network format is the metadata's; the weights
    are ``models/model.pt``. ``configs/task.yaml`` holds the task's facts for training and evaluation. Volumes are
    written as NIfTI, whatever the task says: 3D Slicer looks for nothing else.

    Args:
        task: of the task files in ``bundle_root/configs``.
        output_dir: folder of the zip, made when it is not there; a zip of the same name is replaced.
        run_dir: folder of a training run whose weights and facts go in; None: the weights in ``bundle_root/models``.
        bundle_root: the bundle that this one is made from.
        torchscript: whether to add ``models/model.ts``, which MONAI Deploy runs: network, metadata and
            ``inference.json`` in one file.

    Returns:
        The zip.

    Raises:
        FileNotFoundError: when there is no such task, run or file of weights.
        ValueError: when the run is of another task, or the weights are of another network.
    """
    root, run = Path(bundle_root), None if run_dir is None else Path(run_dir)
    config = _merged_config(root, task, run)
    weights = root / str(config["checkpoint"]) if run is None else run / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"weights {str(weights)!r} are not there; train first, and give --run_dir.")
    config["checkpoint"] = _CHECKPOINT
    if config["spatial_dims"] == 3:
        config["output_ext"] = ".nii.gz"
    name = bundle_name(task)
    target = Path(output_dir) / f"{name}.zip"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as beside:
        folder = Path(beside) / name
        _write_configs(folder, root, config, task)
        shutil.copytree(root / "docs", folder / "docs")
        shutil.copy(root / "LICENSE", folder / "LICENSE")
        (folder / "models").mkdir()
        _write_weights(folder, weights)
        if torchscript:
            _write_torchscript(folder)
        replace(target, lambda path: _zip(folder, path))
    return target


def _merged_config(root: Path, task: str, run: Path | None) -> dict[str, Any]:
    """``inference.json`` with the facts of a task, and of a run, in it."""
    files = [root / "configs" / "inference.json"]
    base = ConfigParser.load_config_files(str(files[0]))
    if task != base["task"]:
        files.append(root / "configs" / f"{task}.yaml")
    if run is not None:
        files.append(run / TASK)
    for path in files[1:]:
        if not path.is_file():
            raise FileNotFoundError(f"{str(path)!r} is not there; name a task of {str(root / 'configs')!r}, and a run.")
        facts = ConfigParser.load_config_files(str(path))
        if facts["task"] != task:
            raise ValueError(f"{str(path)!r} is of task {facts['task']!r}, not {task!r}.")
        base |= {key: facts[key] for key in _MERGED if key in facts}
    return base


def _write_configs(folder: Path, root: Path, config: Mapping[str, Any], task: str) -> None:
    configs = folder / "configs"
    configs.mkdir(parents=True)
    for name in _CONFIGS:
        if (root / "configs" / name).is_file():
            shutil.copy(root / "configs" / name, configs / name)
    (configs / "inference.json").write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    facts = {key: config[key] for key in _MERGED if key in config}
    text = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=120)
    (configs / "task.yaml").write_text(f"{_HEADING}\n{text}", encoding="utf-8")
    metadata = json.loads((root / "configs" / "metadata.json").read_text(encoding="utf-8"))
    (configs / "metadata.json").write_text(json.dumps(_metadata(metadata, config, task), indent=4) + "\n", "utf-8")


def _metadata(metadata: Mapping[str, Any], config: Mapping[str, Any], task: str) -> dict[str, Any]:
    """The metadata with the format of the task's network in the place where consumers look, and no other task's."""
    described = metadata.get(f"{task}_data_format", metadata["network_data_format"])
    kept = {key: value for key, value in metadata.items() if not key.endswith("_data_format")}
    image, pred = dict(described["inputs"]["image"]), dict(described["outputs"]["pred"])
    shape, names = list(config["patch_size"]), config["class_names"]
    image |= {"spatial_shape": shape, "num_channels": config["in_channels"]}
    pred |= {
        "spatial_shape": shape,
        "num_channels": len(names),
        "channel_def": {str(index): name for index, name in enumerate(names)},
    }
    kept["name"] = f"{metadata['name']} ({task})"
    return {**kept, "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": pred}}}


def _network(folder: Path) -> torch.nn.Module:
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    network: torch.nn.Module = parser.get_parsed_content("network_def")
    return network


def _write_weights(folder: Path, weights: Path) -> None:
    state = torch.load(weights, map_location="cpu", weights_only=True)
    refuse_other_network(str(weights), state, _network(folder))
    torch.save(state, folder / _CHECKPOINT)


def _write_torchscript(folder: Path) -> None:
    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(folder / "models" / "model.ts"),
        ckpt_file=str(folder / _CHECKPOINT),
        meta_file=str(folder / "configs" / "metadata.json"),
        config_file=str(folder / "configs" / "inference.json"),
    )


def _zip(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, str(file.relative_to(folder.parent)))

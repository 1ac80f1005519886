"""Small data in the layout of each task, and what the tests of the bundle share."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE

import itk
import nibabel
import numpy as np
from PIL import Image

from monai_skelrec import circle_of_willis, jaw, render

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "bundle"
CONFIGS = BUNDLE / "configs"
SCHEMA = ROOT.parent / "shared" / "data" / "schema" / "meta_schema_20240725.json"
TASKS = ("topcow", "topcow_binary", "toothfairy", "toothfairy2", "folder", "folder_2d", "drive", "roads", "cracks")
TASKS_2D = ("folder_2d", "drive", "roads", "cracks")
PICTURE_FILES = {
    "drive": ("training/images/2{0}_training.tif", "training/1st_manual/2{0}_manual1.gif"),
    "roads": ("train/sat/r{0}_15.tiff", "train/map/r{0}_15.tif"),
    "cracks": ("images/c{0}.jpg", "labels/c{0}.png"),
}
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
    return SMALL_NETWORK_2D if task in TASKS_2D else SMALL_NETWORK


def files_of(base, *others):
    return [str(CONFIGS / base), *(str(CONFIGS / other) for other in others)]


def overlay(task):
    return () if task == "topcow" else (f"{task}.yaml",)


def run_of(root, base):
    return [str(CONFIGS / base), str(root / "run" / "task.yaml")]


def command(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=600,
    )


def two_processes(run_id, files, **knobs):
    """A run under torchrun."""
    return _torchrun(["--standalone", "--nproc_per_node", "2"], run_id, files, **knobs)


def two_nodes(run_id, files, **knobs):
    """A run of two machines with a process each, both of which are this one; they meet at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(_torchrun, [*meeting, "--node_rank", str(rank)], run_id, files, **knobs) for rank in (0, 1)]
    return [run.result() for run in runs]


def _torchrun(options, run_id, files, **knobs):
    """Its processes find the tests' own modules too; one that hangs is killed, and what it had said is kept."""
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    command += ["-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    for name, value in knobs.items():
        command += [f"--{name}", str(value)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=PIPE, stderr=PIPE, text=True, encoding="utf-8"
    ) as process:
        try:
            said = process.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes
            said = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, *said)


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
        elif task in PICTURE_FILES:
            label = (circle_of_willis(number, (48, 40, 32), 1.5) > 0).any(axis=2)
            grey = (60 + 120 * label + np.random.default_rng(number).normal(0, 9, label.shape)).astype(np.uint8)
            image, mask = (root / name.format(number) for name in PICTURE_FILES[task])
            save_picture(image, np.stack([grey] * 3, axis=-1))
            save_picture(mask, (255 * label + 8 * (grey == 70)).astype(np.uint8))  # some stray values
        else:
            label = (circle_of_willis(number, (48, 40, 32), 1.5) > 0).any(axis=2)
            grey = (60 + 120 * label + np.random.default_rng(number).normal(0, 9, label.shape)).astype(np.uint8)
            save_picture(root / "images" / f"{number}.tif", np.stack([grey] * 3, axis=-1))
            ending = ("png", "gif")[number % 2]
            save_picture(root / "labels" / f"{number}.{ending}", (255 * label).astype(np.uint8))
    return root

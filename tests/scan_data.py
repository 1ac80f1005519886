"""Scans of every format with a known label map, and a network that thresholds: what the tests of inference share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import itk
import nibabel
import numpy as np
import torch
import yaml
from PIL import Image

# class 1 above 50, class 2 above 150: logits 0, x - 50, 2 x - 200
THRESHOLDS = (50, 150)
LABEL_VALUES = [0, 3, 7]
ORIGIN, SPACING = (11.0, -7.0, 4.0), (0.5, 0.75, 1.25)


def phantom(shape=(14, 11, 9)):
    """Intensities 0, 100, 200 without any symmetry, and a ramp so that no scan is constant along an axis."""
    scan = np.zeros(shape, np.int16)
    scan[2:9, 3, 4] = 100
    scan[2, 3:8, 4] = 100
    scan[2, 3, 4:7] = 100
    scan[9:12, 6:9, 1:3] = 200
    return scan


def expected(scan):
    return np.asarray(LABEL_VALUES, np.uint8)[np.digitize(scan, THRESHOLDS)]


def threshold_network(dims=3, channels=1):
    network = (torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d)(channels, 3, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.weight[:, 0] = torch.tensor([0.0, 1, 2]).reshape(3, *[1] * dims)
        network.bias.copy_(torch.tensor([0.0, -50, -200]))
    return network


def write_task(folder, dims=3, **facts):
    """A run's task.yaml whose network thresholds."""
    folder.mkdir(parents=True, exist_ok=True)
    channels = facts.get("in_channels", 1)
    torch.save(threshold_network(dims, channels).state_dict(), folder / "model.pt")
    content = {
        "task": "threshold",
        "class_names": ["background", "thin", "thick"],
        "label_values": LABEL_VALUES,
        "spatial_dims": dims,
        "in_channels": channels,
        "spacing": None,
        "intensity": {"_target_": "Identityd", "keys": "image"},
        "patch_size": [8] * dims,
        "network_def": {
            "_target_": f"torch.nn.Conv{dims}d",
            "in_channels": channels,
            "out_channels": 3,
            "kernel_size": 1,
        },
        "checkpoint": str(folder / "model.pt"),
        **facts,
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(content))
    return folder / "task.yaml"


class NoteScan:
    """An intensity step that notes, in a file of each process, the largest value of every scan that is segmented.

    Args:
        keys: "image".
        folder: gets the notes.
        kill: largest value of the scan that kills the process, the first time it is seen.
    """

    def __init__(self, keys, folder, kill=None):
        self.folder, self.kill = Path(folder), kill

    def __call__(self, data):
        seen = int(data["image"].max())
        with (self.folder / f"process_{os.environ.get('RANK', '0')}.txt").open("a") as file:
            file.write(f"{seen}\n")
        killed = self.folder / "killed"
        if seen == self.kill and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return data


def affine_of(spacing=SPACING, origin=ORIGIN, rotation=None):
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if rotation is None else rotation) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def oblique():
    """A rotation about no axis of the scan."""
    turn, tilt = np.deg2rad([20, -35])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    return about_z @ about_x


def write_nifti(path, scan, affine=None, dtype=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(
        scan if dtype is None else scan.astype(dtype), affine_of() if affine is None else affine
    )
    nibabel.save(image, path)
    return path


def itk_image(scan, spacing=SPACING, origin=ORIGIN, direction=None):
    image = itk.image_from_array(np.ascontiguousarray(scan.T))
    image.SetSpacing(list(spacing))
    image.SetOrigin(list(origin))
    if direction is not None:
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(direction)))
    return image


def write_itk(path, scan, **about):
    path.parent.mkdir(parents=True, exist_ok=True)
    itk.imwrite(itk_image(scan, **about), str(path))
    return path


def write_dicom(folder, scan, uid="1.2.826.1", missing=(), ending=".dcm"):
    """A series of one file a slice, signed 16 bit."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(scan.shape[2]):
        if number in missing:
            continue
        place = (*ORIGIN[:2], ORIGIN[2] + number * SPACING[2])
        image = itk_image(scan[:, :, number : number + 1].astype(np.int16), origin=place)
        tags = {
            "0008|0018": f"{uid}.{number + 1}",
            "0008|0021": "20240102",
            "0008|0060": "CT",
            "0018|0050": str(SPACING[2]),
            "0020|000d": "1.2.826.9",
            "0020|000e": uid,
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(map(str, place)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        about = image.GetMetaDataDictionary()
        for tag, value in tags.items():
            about[tag] = value
        coder = itk.GDCMImageIO.New()
        coder.KeepOriginalUIDOn()
        path = folder / f"{uid}_{number}.dcm"
        itk.ImageFileWriter[type(image)].New(Input=image, FileName=str(path), ImageIO=coder).Update()
        path.rename(path.with_name(f"{path.stem}{ending}"))
    return folder


def write_picture(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grey).save(path)
    return path

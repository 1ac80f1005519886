"""Knobs of the recipe reach the parts they are named after."""

from __future__ import annotations

import pytest
import torch
from bundle_data import SMALL_NETWORK, SMALL_NETWORK_2D, files_of, write_data
from monai.bundle import ConfigParser
from monai.transforms import RandFlipd

from monai_skelrec import RandPatchd


def parts(*names, task=(), **knobs):
    parser = ConfigParser()
    parser.read_config(files_of("train.yaml", *task))
    parser.update({**SMALL_NETWORK, "device": "cpu", **knobs})
    return [parser.get_parsed_content(name) for name in names]


def augmentation_of(**knobs):
    (pipeline,) = parts("train::preprocessing", **knobs)
    steps = pipeline.transforms
    first = next(at for at, step in enumerate(steps) if isinstance(step, RandPatchd))
    return steps[first], [step for step in steps[first + 1 :] if hasattr(step, "prob")]


def test_augmentation_multiplies_every_probability():
    patch, steps = augmentation_of(mirror_axes=[0, 1, 2])
    assert (patch.rotate_prob, patch.scale_prob) == (0.2, 0.2)
    assert [step.prob for step in steps] == [0.1, 0.1, 0.15, 0.15, 0.125, 0.1, 0.3, 0.5, 0.5, 0.5]
    patch, steps = augmentation_of(mirror_axes=[0, 1, 2], augmentation=0.5)
    assert (patch.rotate_prob, patch.scale_prob) == (0.1, 0.1)
    assert [step.prob for step in steps] == [0.05, 0.05, 0.075, 0.075, 0.0625, 0.05, 0.15, 0.25, 0.25, 0.25]
    patch, steps = augmentation_of(augmentation=0.0)
    assert {patch.rotate_prob, patch.scale_prob, *(step.prob for step in steps)} == {0}


@pytest.mark.parametrize(
    "task, axes", [("topcow", {1, 2}), ("toothfairy2", {1, 2}), ("topcow_binary", {0, 1, 2}), ("toothfairy", {0, 1, 2})]
)
def test_by_default_no_training_mirrors_left_and_right_classes(task, axes):
    files = () if task == "topcow" else (f"{task}.yaml",)
    (pipeline,) = parts("train::preprocessing", task=files)
    flips = [step for step in pipeline.transforms if isinstance(step, RandFlipd) and step.prob > 0]
    assert {step.flipper.spatial_axis for step in flips} == axes


def test_from_side_to_side_a_training_renames_what_has_a_side():
    (pipeline,) = parts("train::preprocessing", mirror_axes=[0])
    (flip,) = [step for step in pipeline.transforms if isinstance(step, RandFlipd) and step.prob > 0]
    label = torch.tensor([0, 1, 2, 3, 8, 9, 10, 13]).reshape(1, -1, 1, 1)  # BA, both PCAs, both Pcoms, Acom, 3rd A2
    flip.prob = 1.0
    flipped = flip({"image": label.float(), "label": label})
    assert flipped["label"].flatten().tolist() == [13, 10, 8, 9, 2, 3, 1, 0]
    assert flipped["image"].flatten().tolist() == [13, 10, 9, 8, 3, 2, 1, 0]


def test_optimizer_and_schedule_follow_their_knobs():
    knobs = {"learning_rate": 0.02, "momentum": 0.9, "weight_decay": 0.001, "epochs": 7}
    handlers = ConfigParser.load_config_files(files_of("train.yaml"))["train"]["handlers"]
    names = [handler["_target_"] for handler in handlers]
    clip = f"train::handlers::{names.index('monai_skelrec.gradients.ClipGradients')}"
    optimizer, schedule, clipping = parts("optimizer", "lr_scheduler", clip, max_gradient=3, **knobs)
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD) and group["nesterov"]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.9, 0.001)
    assert (schedule.total_iters, schedule.power) == (7, 0.9)
    assert clipping.max_norm == 3


def test_foreground_share_reaches_the_patch_and_classes_are_known(tmp_path):
    patch, _ = augmentation_of(foreground_share=0.8)
    assert patch.foreground_share == 0.8
    data = str(write_data("topcow", tmp_path / "data", count=4))
    for fraction, count in ((1.0, 2), (0.5, 1)):
        (dataset,) = parts(
            "train::dataset", dataset_dir=data, folds=2, data_fraction=fraction, cache="none", output_dir=str(tmp_path)
        )
        assert len(dataset) == count
    cached = dataset.transform(
        dataset.data[0], end=next(i for i, s in enumerate(dataset.transform.transforms) if isinstance(s, RandPatchd))
    )
    sizes = [len(indices) for indices in cached["label_cls_indices"]]
    assert len(sizes) == 14 and sizes[0] == 10_000 and 0 < sizes[4] <= 10_000
    assert cached["label"].dtype == torch.uint8


def test_pictures_are_augmented_too(tmp_path):
    (dataset,) = parts(
        "train::dataset",
        task=("folder_2d.yaml",),
        dataset_dir=str(write_data("folder_2d", tmp_path / "data", count=2)),
        fold="all",
        cache="memory",
        augmentation=2.0,
        **{**SMALL_NETWORK_2D},
    )
    dataset.transform.set_random_state(seed=0)
    for _ in range(10):
        item = dataset[0]
        assert item["image"].shape == (3, 32, 32) and item["label"].shape == (2, 32, 32)

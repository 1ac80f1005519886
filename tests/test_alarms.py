"""A training that goes wrong stops or says so, and names where."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from monai.data import MetaTensor

from monai_skelrec.alarms import MissingTubes, StopWhenNotFinite, classes_with_tube, names_of

NAN = float("nan")


def engine_with(loss=1.0, label=None, iteration=1, images=None):
    images = torch.zeros(2, 1, 2, 2) if images is None else images
    return SimpleNamespace(
        state=SimpleNamespace(
            iteration=iteration,
            epoch=3,
            device=torch.device("cpu"),
            batch={"name": ["P1", "P2"], "image": images},
            output={"loss": torch.tensor(loss), "label": label, "image": images},
        )
    )


# --- losses ----------------------------------------------------------------------------------------------------------


def test_finite_loss_passes():
    StopWhenNotFinite(torch.nn.Identity())(engine_with(1.0))


def test_loss_that_is_not_finite_names_term_and_cases():
    loss = SimpleNamespace(terms={"dice": torch.tensor(1.0), "ce": torch.tensor(NAN), "skeleton_recall": torch.ones(1)})
    with pytest.raises(ValueError) as error:
        StopWhenNotFinite(loss)(engine_with(NAN, iteration=12))
    assert str(error.value) == (
        "loss is nan in iteration 12 (epoch 3), for its ce; the batch was cut from P1, P2. Images are finite: lower "
        "--learning_rate, or set --amp False. Checkpoints hold epoch 2."
    )


def test_image_that_is_not_finite_is_named():
    images = torch.zeros(2, 1, 2, 2)
    images[1, 0, 0, 0] = NAN
    with pytest.raises(ValueError, match="loss is inf .* cut from P1, P2. The image of P2 is not finite"):
        StopWhenNotFinite(torch.nn.Identity())(engine_with(float("inf"), images=MetaTensor(images)))


def test_cases_without_a_name_are_named_by_their_files():
    image = MetaTensor(torch.zeros(2, 1, 2), meta={"filename_or_obj": ["a.nii", "b.nii"]})
    assert names_of({"image": image}) == ["a.nii", "b.nii"]
    assert names_of({"image": torch.zeros(1)}) == ["cases without a name"]


# --- tubes -----------------------------------------------------------------------------------------------------------


def stack(tube):
    """Two items of four pixels; only the tube matters."""
    tube = torch.tensor(tube).view(2, 1, 1, 4)
    return torch.cat([torch.zeros_like(tube), tube], dim=1)


def test_classes_with_tube_are_found_in_every_form_of_target():
    assert classes_with_tube(stack([[0, 2, 0, 0], [0, 0, 0, 2]]), 4).tolist() == [True, False, True, False]
    multi_hot = torch.zeros(2, 5, 1, 4)
    multi_hot[1, 1 + 3, 0, 2] = 1
    assert classes_with_tube(multi_hot, 4).tolist() == [False, False, False, True]
    overlapping = torch.zeros(1, 8, 1, 4)
    overlapping[0, 0] = 1  # a label, not a tube
    overlapping[0, 4 + 1, 0, 0] = 1
    assert classes_with_tube(MetaTensor(overlapping), 4).tolist() == [False, True, False, False]


def warnings_of(alarm, tubes, caplog):
    """What is said, iteration by iteration."""
    said = []
    for iteration, tube in enumerate(tubes, start=1):
        caplog.clear()
        alarm(engine_with(label=stack(tube), iteration=iteration))
        said.append(caplog.text)
    return said


NONE, ONE, TWO = [[0] * 4, [0] * 4], [[1, 0, 0, 0], [0] * 4], [[0] * 4, [2, 2, 0, 0]]


def test_class_without_tube_is_named_once(caplog):
    alarm = MissingTubes(["background", "BA", "Acom"], iterations=3)
    said = warnings_of(alarm, [ONE, NONE, ONE, ONE, NONE, NONE, NONE, NONE, NONE], caplog)
    assert [bool(text) for text in said] == [False, False, True, False, False, False, False, False, True]
    assert "no tube of Acom in 3 iterations" in said[2]
    assert "no tube of BA in 3 iterations" in said[8]


def test_class_with_a_tube_now_and_then_is_not_named(caplog):
    alarm = MissingTubes(["background", "BA", "Acom"], iterations=2)
    assert not any(warnings_of(alarm, [ONE, TWO, TWO, ONE], caplog))


def test_no_iterations_no_alarm():
    class Refusing:
        def add_event_handler(self, *arguments):
            raise AssertionError("nothing is to be attached")

    MissingTubes(["background", "BA"], iterations=0).attach(Refusing())

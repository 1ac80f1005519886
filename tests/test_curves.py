"""What is written while a network trains, and that a resumed run goes on with it."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents

from monai_skelrec import curves
from monai_skelrec.curves import Curves, mean_of_cases
from monai_skelrec.overlays import draw_outlines


class Loss:
    terms: dict[str, torch.Tensor] = {}


def train(folder, epochs, start=0, validate=True):
    """Two iterations an epoch with losses 1 and 3 times the epoch; scored in epoch 2."""
    loss, optimizer = Loss(), torch.optim.SGD([torch.zeros(1)], lr=0.5)
    validator = Engine(lambda engine, case: case)
    validator.state.metrics, validator.state.metric_details = {}, {}

    def step(engine, batch):
        value = torch.tensor(float(batch * engine.state.epoch))
        loss.terms = {"dice": value / 2}
        engine.state.output = {"loss": value}
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

    def score(engine):
        if validate and engine.state.epoch == 2:
            image = MetaTensor(torch.rand(1, 6, 4), meta={"filename_or_obj": "/scans/P1.nii"})
            case = {"image": image, "label": torch.ones(1, 6, 4), "pred": torch.ones(1, 6, 4)}
            validator.state.metrics = {"val_mean_dice": 0.25}
            validator.state.metric_details = {"val_mean_dice": torch.tensor([[0.5, float("nan")], [0.0, float("nan")]])}
            validator.run([[case]])
            validator.state.epoch = 2

    trainer = Engine(step)
    trainer.register_events(*IterationEvents)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, score)
    Curves(str(folder), optimizer, loss, validator, ["background", "BA", "Acom"], pictures=1).attach(trainer)
    trainer.state.device = torch.device("cpu")
    trainer.state.max_epochs, trainer.state.epoch_length = epochs, 2
    trainer.state.epoch, trainer.state.iteration = start, 2 * start
    trainer.run([1, 3], max_epochs=epochs, epoch_length=2)


def rows(folder):
    with open(folder / "curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_row_of_an_epoch_holds_means_rate_and_scores(tmp_path):
    train(tmp_path, epochs=3)
    found = rows(tmp_path)
    assert [row["epoch"] for row in found] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in found] == [2.0, 4.0, 6.0]
    assert [float(row["dice"]) for row in found] == [1.0, 2.0, 3.0]
    assert {float(row["learning_rate"]) for row in found} == {0.5}
    assert [row["val_mean_dice"] for row in found] == ["", "0.25", ""]
    assert all(float(row["minutes"]) > 0 for row in found)


def test_resumed_run_takes_back_what_its_checkpoint_does_not_hold(tmp_path):
    train(tmp_path, epochs=3)
    train(tmp_path, epochs=4, start=1, validate=False)
    found = rows(tmp_path)
    assert [row["epoch"] for row in found] == ["1", "2", "3", "4"]
    assert [row["val_mean_dice"] for row in found if "val_mean_dice" in row] == []


def test_events_hold_each_class_by_name_and_a_picture(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(tmp_path, epochs=3)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()
    # Acom has no score in any case
    scalars = {"minutes", "learning_rate", "loss", "dice", "val_mean_dice/mean", "val_mean_dice/BA"}
    assert set(tags["scalars"]) == scalars
    assert [(event.step, event.value) for event in events.Scalars("val_mean_dice/BA")] == [(2, 0.25)]
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert tags["images"] == ["held out/P1.nii"]


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "is_first", lambda: False)
    train(tmp_path, epochs=2)
    assert not list(tmp_path.iterdir())


def test_mean_of_cases_leaves_out_what_has_no_score():
    nan = float("nan")
    means = mean_of_cases(np.array([[1.0, nan, nan], [0.0, 0.5, nan]]))
    np.testing.assert_array_equal(means, [0.5, 0.5, nan])


def test_outlines_are_green_red_and_yellow_and_a_gap_shows():
    reference = np.zeros((5, 3, 4), bool)
    reference[:, 1, 2] = True
    pred = reference.copy()
    pred[2] = False  # the gap
    pred[0, 0, 0] = True
    picture = draw_outlines(image=np.zeros((5, 3, 4)), reference=reference, pred=pred)
    assert picture.shape == (3, 5, 3) and picture.dtype == np.uint8
    yellow, green, red = [255, 255, 0], [0, 255, 0], [255, 0, 0]
    assert picture[1].tolist() == [yellow, yellow, green, yellow, yellow]
    assert picture[2, 0].tolist() == red  # second axis up: its first row is the lowest
    assert picture[0].max() == 0
    np.testing.assert_array_equal(
        draw_outlines(image=np.zeros((5, 3)), reference=reference.any(2), pred=pred.any(2)), picture
    )


def test_image_is_seen_between_the_outlines():
    image = np.zeros((100, 100))
    image[50:] = 7
    nothing = np.zeros((100, 100), bool)
    picture = draw_outlines(image=image, reference=nothing, pred=nothing)
    assert picture[0, 0].tolist() == [0, 0, 0] and picture[0, 99].tolist() == [160, 160, 160]

"""The gradient is shortened to its largest length before the step, and only then."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer

from monai_skelrec.gradients import ClipGradients


def weight_after(handlers, factor=3.0, steps=1, **knobs):
    """One weight, inputs of 1, loss = factor x weight: the gradient is the factor, the rate 1."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(network.weight)
    data = [{"image": torch.ones(1), "label": torch.ones(1)}] * steps
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(data, batch_size=1),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda pred, target: factor * pred.mean(),
        train_handlers=handlers,
        **knobs,
    ).run()
    return network.weight.item()


def test_long_gradients_are_shortened_and_short_ones_are_not():
    assert weight_after([]) == pytest.approx(-3)
    assert weight_after([ClipGradients(2.0)]) == pytest.approx(-2)
    assert weight_after([ClipGradients(12.0)]) == pytest.approx(-3)


def test_with_accumulation_the_sum_is_shortened():
    # MONAI divides each loss by the number of steps that are gathered: 3 / 2 + 3 / 2
    assert weight_after([ClipGradients(2.0)], steps=2, accumulation_steps=2) == pytest.approx(-2)
    assert weight_after([ClipGradients(12.0)], steps=2, accumulation_steps=2) == pytest.approx(-3)
    # the third step ends the epoch, so it is a step of its own
    assert weight_after([ClipGradients(1.0)], steps=3, accumulation_steps=2) == pytest.approx(-2)


class Scaler:
    """What the engine uses of ``torch.amp.GradScaler``, on a machine without CUDA."""

    def __init__(self):
        self.unscaled = 0

    def scale(self, loss):
        return 1024 * loss

    def unscale_(self, optimizer):
        self.unscaled += 1
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= 1024

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


def test_mixed_precision_is_unscaled_once_before(monkeypatch):
    scaler = Scaler()
    monkeypatch.setattr("torch.cuda.amp.GradScaler", lambda: scaler)
    assert weight_after([ClipGradients(2.0)], amp=True) == pytest.approx(-2, abs=1e-3)
    assert scaler.unscaled == 1


def test_length_must_be_positive():
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        ClipGradients(0)

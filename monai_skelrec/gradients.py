"""Gradient -> gradient of bounded length: a step of the trainer that MONAI has no handler for."""

from __future__ import annotations

import torch
from monai.engines import IterationEvents, SupervisedTrainer

__all__ = ["ClipGradients"]


class ClipGradients:
    """Shorten the gradient of all parameters together to a largest length before the optimizer's step.

    With mixed precision the gradient is unscaled first, so that the length means the same; the scaler then knows that
    it must not unscale again. With gradient accumulation it is the sum of a step that is shortened.

    Args:
        max_norm: largest Euclidean length; nnU-Net takes 12. Shorter gradients stay as they are.

    Raises:
        ValueError: when ``max_norm`` is not positive.
    """

    def __init__(self, max_norm: float = 12.0) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be above 0, got {max_norm}.")
        self.max_norm = max_norm

    def attach(self, engine: SupervisedTrainer) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        done = (engine.state.iteration - 1) % engine.state.epoch_length + 1
        if done % engine.accumulation_steps and done != engine.state.epoch_length:
            return
        if engine.amp and engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        parameters = [one for group in engine.optimizer.param_groups for one in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)

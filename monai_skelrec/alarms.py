"""Beside the step "loss -> model.pt": a training that goes wrong stops or says so, and names where."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.engines import IterationEvents, Workflow
from monai.utils import CommonKeys, convert_to_tensor

from .handlers import loss_terms
from .processes import average

__all__ = ["MissingTubes", "StopWhenNotFinite", "classes_with_tube", "names_of"]


class StopWhenNotFinite:
    """Stop a training at the first loss that is NaN or infinite, before it reaches the weights.

    Args:
        loss: whose terms, if it has any, are named.
    """

    def __init__(self, loss: torch.nn.Module) -> None:
        self.loss = loss

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        state = engine.state
        value = state.output[CommonKeys.LOSS]
        if torch.isfinite(value):
            return
        terms = [name for name, term in loss_terms(self.loss).items() if not torch.isfinite(term).all()]
        cases = names_of(state.batch)
        images = convert_to_tensor(state.output[CommonKeys.IMAGE], track_meta=False)
        broken = [name for name, image in zip(cases, images) if not torch.isfinite(image).all()]
        if broken:
            advice = f"The image of {', '.join(broken)} is not finite after augmentation."
        else:
            advice = "Images are finite: lower --learning_rate, or set --amp False."
        raise ValueError(
            f"loss is {float(value)} in iteration {state.iteration} (epoch {state.epoch})"
            + (f", for its {' and '.join(terms)}" if terms else "")
            + f"; the batch was cut from {', '.join(cases)}. {advice} Checkpoints hold epoch {state.epoch - 1}."
        )


class MissingTubes:
    """Warn of a class that had no tube in many iterations on end: skeleton recall does not train it.

    Each class is named once. Of several processes all look, and the first one warns.

    Args:
        class_names: background first.
        iterations: length of the windows that are looked at, one after the other; 0 looks at none.
    """

    def __init__(self, class_names: Sequence[str], iterations: int) -> None:
        self.class_names = list(class_names)
        self.iterations = iterations
        self._seen = torch.zeros(len(self.class_names), dtype=torch.bool)
        self._warned: set[str] = set()

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: the trainer.
        """
        if self.iterations > 0:
            # later, MONAI takes the output apart into the items of the batch
            engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        if not self._seen[1:].all():  # usually all are, soon after a window began
            self._seen |= classes_with_tube(engine.state.output[CommonKeys.LABEL], len(self.class_names)).cpu()
        if engine.state.iteration % self.iterations:
            return
        seen = average(self._seen.to(engine.state.device).float())
        self._seen = torch.zeros_like(self._seen)
        missing = [
            name for name, there in zip(self.class_names[1:], seen[1:]) if not there and name not in self._warned
        ]
        if missing:
            self._warned.update(missing)
            logging.getLogger(__name__).warning(
                f"no tube of {', '.join(missing)} in {self.iterations} iterations, so nothing teaches the network to "
                "keep it whole: is it in the labels, and are label_values and skeleton_groups right?"
            )


def classes_with_tube(target: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Which classes have a tube in a batch; boolean, shape (n_classes,).

    Args:
        target: label and its tubed skeleton stacked on the channel axis, in any of the forms that
            :py:class:`monai_skelrec.DiceCESkeletonRecallLoss` takes.
        n_classes: background included.
    """
    target = convert_to_tensor(target, track_meta=False)
    if target.shape[1] > 2 or target.shape[1] == 1 + n_classes:  # a channel a class, 0 where it has no tube
        return target[:, -n_classes:].transpose(0, 1).reshape(n_classes, -1).any(1)
    return torch.bincount(target[:, 1].reshape(-1).long(), minlength=n_classes)[:n_classes] > 0


def names_of(batch: Mapping[str, Any]) -> list[str]:
    """Names of the cases that a batch was cut from.

    Args:
        batch: of the training loader, with the case's ``name``, or the file in the image's metadata.
    """
    if "name" in batch:
        return [str(name) for name in batch["name"]]
    files = getattr(batch[CommonKeys.IMAGE], "meta", {}).get("filename_or_obj", ["cases without a name"])
    return [str(file) for file in ([files] if isinstance(files, str) else files)]

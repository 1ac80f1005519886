"""What the trainer's engine needs and MONAI lacks: seeds that a resumed run finds again, and a progress bar."""

from __future__ import annotations

import random
from typing import Any, cast

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from monai.data import DataLoader
from monai.data.utils import set_rnd
from monai.engines import Workflow
from monai.handlers import from_engine
from monai.utils import CommonKeys

from .draws import BatchDraws
from .processes import is_first

__all__ = ["Progress", "Reseed", "WarmUp", "loss_terms"]


class Reseed:
    """Seed every epoch by its number, so that a resumed run draws what an uninterrupted one would have drawn.

    Cases, crops and augmentation follow :py:class:`monai_skelrec.draws.BatchDraws`; what else is random, such as
    dropout, differs between processes.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        # hashed: epoch 2 of seed 0 must not draw what epoch 1 of seed 1 draws
        source = np.random.SeedSequence([self.seed, engine.state.epoch, idist.get_rank()])
        seed = int(source.generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        loader = cast(DataLoader, engine.data_loader)
        draws = getattr(loader, "batch_sampler", None)
        if isinstance(draws, BatchDraws):
            draws.set_epoch(engine.state.epoch)
        else:
            # without workers the transforms hold random states of their own
            set_rnd(loader.dataset, seed)


class WarmUp:
    """Let skeleton recall and what goes with it count later than Dice and cross-entropy.

    Every loss within ``loss`` that has a ``ramp`` gets one: 0 in the first ``epochs``, then 1; with a ``warm_up`` of
    its own waits for the later of the two. It follows from the number of the epoch alone, so a resumed run goes on with
    what an uninterrupted one would have.

    Args:
        loss: of the trainer.
        epochs: without these terms; 0 leaves what has no ``warm_up`` as it is.

    Raises:
        ValueError: when ``epochs`` is negative, or nothing in ``loss`` has a ramp.
    """

    def __init__(self, loss: torch.nn.Module, epochs: int) -> None:
        self.losses: list[Any] = [each for each in loss.modules() if hasattr(each, "ramp")]
        self.waits = [max(epochs, getattr(each, "warm_up", 0)) for each in self.losses]
        if epochs < 0:
            raise ValueError(f"a warm-up must take at least 0 epochs, got {epochs}.")
        if epochs > 0 and not self.losses:
            raise ValueError(f"{type(loss).__name__} has no term that could be warmed up; set warm_up to 0.")

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: the trainer.
        """
        if any(self.waits):
            engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Workflow) -> None:
        for loss, epochs in zip(self.losses, self.waits):
            loss.ramp = float(engine.state.epoch > epochs)


class Progress:
    """A progress bar over the iterations of an engine, shown by the first of several processes.

    Args:
        description: what an iteration belongs to.
        loss: of a trainer; its value, and its terms if it has any, are shown beside the bar. None: nothing is.
    """

    def __init__(self, description: str, loss: torch.nn.Module | None = None) -> None:
        self.description = description
        self.loss = loss

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: a trainer or an evaluator.
        """
        if is_first():
            bar = ProgressBar(desc=self.description, persist=self.loss is not None, bar_format=_BAR)
            bar.attach(engine, output_transform=self._values if self.loss is not None else None)

    def _values(self, output: Any) -> dict[str, float]:
        values = {"loss": from_engine(CommonKeys.LOSS, first=True)(output), **loss_terms(self.loss)}
        return {name: float(value) for name, value in values.items()}


def loss_terms(loss: Any) -> dict[str, torch.Tensor]:
    """The parts of which a loss was last the sum, by name; empty for losses that keep none.

    Args:
        loss: such as :py:class:`monai_skelrec.DiceCESkeletonRecallLoss`, whose ``terms`` are read.
    """
    return dict(getattr(loss, "terms", None) or {})


_BAR = "{desc}[{n_fmt}/{total_fmt}] {percentage:3.0f}%|{bar}|{postfix} {elapsed}<{remaining}"

"""What the trainer's engine needs and MONAI lacks: checkpoints that survive a kill, resuming, seeds, a progress bar."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Events
from ignite.handlers import ProgressBar
from monai.data import DataLoader
from monai.data.utils import set_rnd
from monai.engines import Workflow
from monai.handlers import from_engine
from monai.utils import CommonKeys

from .files import replace

__all__ = ["LAST", "WEIGHTS", "Progress", "Reseed", "RunCheckpoints", "refuse_other_network", "resume_run"]

WEIGHTS, LAST = "model.pt", "last.pt"


def refuse_other_network(path: str, weights: Mapping[str, torch.Tensor], network: torch.nn.Module) -> None:
    """Refuse weights of another network in one sentence, where PyTorch lists every layer.

    Args:
        path: where the weights come from.
        weights: state dictionary.
        network: what it shall be loaded into.

    Raises:
        ValueError: when layers are missing, additional or of other sizes; the first of each is named.
    """
    own = network.state_dict()
    other = [name for name in own if name in weights and weights[name].shape != own[name].shape]
    differences = [
        f"{what} {names[0]}" + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
        for what, names in (
            ("it lacks", [name for name in own if name not in weights]),
            ("it has besides", [name for name in weights if name not in own]),
            ("it has another size of", other),
        )
        if names
    ]
    if differences:
        raise ValueError(
            f"checkpoint {path!r} belongs to another network (other classes, filters or strides?): "
            f"{'; '.join(differences)}."
        )


class RunCheckpoints:
    """Write ``model.pt``, the weights with the best validation score (the last ones where no epoch was scored), and
    ``last.pt``, all that resuming needs.

    Stands after the ValidationHandler in the trainer's list, so that an epoch is scored before it is written.

    Args:
        output_dir: folder of the run.
        network: whose weights are written.
        optimizer: goes into ``last.pt``.
        lr_scheduler: goes into ``last.pt``.
        validator: evaluator whose ``state.best_metric`` decides.
    """

    def __init__(
        self,
        output_dir: str,
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any,
        validator: Workflow,
    ) -> None:
        self.folder = Path(output_dir)
        self.network = network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.validator = validator

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        state = self.validator.state
        last = engine.state.epoch == engine.state.max_epochs
        # a run that ends before its first validation, or has nothing to score, keeps its last weights
        if state.best_metric_epoch == engine.state.epoch or (last and state.best_metric_epoch < 1):
            replace(self.folder / WEIGHTS, lambda beside: torch.save(self.network.state_dict(), beside))
        scaler = getattr(engine, "scaler", None)
        content = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "epoch": engine.state.epoch,
            "best_metric": float(state.best_metric),
            "best_metric_epoch": state.best_metric_epoch,
        }
        replace(self.folder / LAST, lambda beside: torch.save(content, beside))


def resume_run(checkpoints: RunCheckpoints, trainer: Workflow) -> None:
    """Put a trainer, and the best score of its validator, where ``last.pt`` left them.

    Args:
        checkpoints: the handler that wrote the file.
        trainer: about to run.

    Raises:
        FileNotFoundError: when there is no ``last.pt``.
        ValueError: when the run had reached its last epoch already, or trained another network.
    """
    path = checkpoints.folder / LAST
    if not path.is_file():
        raise FileNotFoundError(f"{str(checkpoints.folder)!r} holds no {LAST} to resume from; start without --resume.")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if content["epoch"] >= trainer.state.max_epochs:
        raise ValueError(f"{str(path)!r} has all {content['epoch']} epochs already; raise --epochs to train on.")
    refuse_other_network(str(path), content["network"], checkpoints.network)
    checkpoints.network.load_state_dict(content["network"])
    checkpoints.optimizer.load_state_dict(content["optimizer"])
    # the length of the schedule is that of this run, which may be longer than the one that stopped
    content["lr_scheduler"].pop("total_iters", None)
    checkpoints.lr_scheduler.load_state_dict(content["lr_scheduler"])
    trainer.state.epoch = content["epoch"]
    trainer.state.iteration = content["epoch"] * trainer.state.epoch_length
    checkpoints.validator.state.best_metric = content["best_metric"]
    checkpoints.validator.state.best_metric_epoch = content["best_metric_epoch"]

    @trainer.on(Events.STARTED)
    def restore_scaler(engine: Workflow) -> None:
        # MONAI makes the scaler when the run begins
        if content["scaler"] and engine.scaler is not None:
            engine.scaler.load_state_dict(content["scaler"])


class Reseed:
    """Seed every epoch by its number, so that a resumed run draws what an uninterrupted one would have drawn.

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
        seed = int(np.random.SeedSequence([self.seed, engine.state.epoch]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        # without workers the transforms hold random states of their own
        set_rnd(cast(DataLoader, engine.data_loader).dataset, seed)


class Progress:
    """A progress bar over the iterations of an engine.

    Args:
        description: what an iteration belongs to.
        loss: whether the loss is shown beside it (trainers).
    """

    def __init__(self, description: str, loss: bool = False) -> None:
        self.description = description
        self.loss = loss

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: a trainer or an evaluator.
        """
        bar = ProgressBar(desc=self.description, persist=True, bar_format=_BAR)
        bar.attach(engine, output_transform=_loss_of if self.loss else None)


_BAR = "{desc}[{n_fmt}/{total_fmt}] {percentage:3.0f}%|{bar}|{postfix} {elapsed}<{remaining}"


def _loss_of(output: Any) -> dict[str, float]:
    return {"loss": float(from_engine(CommonKeys.LOSS, first=True)(output))}

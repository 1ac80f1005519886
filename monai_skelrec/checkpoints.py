"""Step "loss -> model.pt": checkpoints of a run that survive a kill at any moment, and going on from them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Workflow
from torch.nn.parallel import DistributedDataParallel

from .files import remove_unfinished, replace
from .networks import inference_network, inference_state_dict
from .processes import is_first

__all__ = [
    "CONFIG",
    "LAST",
    "PREVIOUS",
    "WEIGHTS",
    "RunCheckpoints",
    "finished_epochs",
    "refuse_other_network",
    "resume_run",
    "start_weights",
]

WEIGHTS, LAST, PREVIOUS, CONFIG = "model.pt", "last.pt", "previous.pt", "config.yaml"


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
    """Write ``model.pt``, the weights with the best validation score (the last ones where no epoch was scored) without
    heads that only training has, and ``last.pt``, all that resuming needs; ``previous.pt`` is the ``last.pt`` of the
    epoch before.

    Stands after the ValidationHandler in the trainer's list, so that an epoch is scored before it is written. Of
    several processes the first writes and no other waits for it. Weights that are not finite are never written.

    Args:
        output_dir: folder of the run.
        network: whose weights are written; those within, when it is a DistributedDataParallel.
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
        self.network = network.module if isinstance(network, DistributedDataParallel) else network
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.validator = validator

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: the trainer.
        """
        if is_first():
            for name in (WEIGHTS, LAST):
                remove_unfinished(self.folder / name)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Workflow) -> None:
        epoch = engine.state.epoch
        spoilt = [name for name, value in self.network.state_dict().items() if not torch.isfinite(value).all()]
        if spoilt:
            raise ValueError(
                f"weights are not finite after epoch {epoch} ({spoilt[0]} and {len(spoilt) - 1} more): nothing was "
                f"written, {LAST} holds the epoch before; lower --learning_rate and --resume True."
            )
        state = self.validator.state
        # a run that ends before its first validation, or has nothing to score, keeps its last weights
        if state.best_metric_epoch == epoch or (epoch == engine.state.max_epochs and state.best_metric_epoch < 1):
            replace(self.folder / WEIGHTS, lambda beside: torch.save(inference_state_dict(self.network), beside))
        scaler = getattr(engine, "scaler", None)
        content = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "epoch": epoch,
            "best_metric": float(state.best_metric),
            "best_metric_epoch": state.best_metric_epoch,
        }
        replace(self.folder / LAST, lambda beside: torch.save(content, beside), keep=self.folder / PREVIOUS)


def finished_epochs(folder: Path) -> int:
    """How many epochs of a run its folder holds; 0 when there is nothing to go on from.

    Args:
        folder: of the run.
    """
    if not any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        return 0
    return int(_read_last(folder)[1]["epoch"])


def resume_run(checkpoints: RunCheckpoints, trainer: Workflow) -> None:
    """Put a trainer, and the best score of its validator, where ``last.pt`` left them.

    A run that was killed before the end of its first epoch starts from the beginning, and says so.

    Args:
        checkpoints: the handler that wrote the file.
        trainer: about to run.

    Raises:
        FileNotFoundError: when the folder holds no run.
        ValueError: when the run had reached its last epoch already, or trained another network.
    """
    folder = checkpoints.folder
    if not any((folder / name).is_file() for name in (LAST, PREVIOUS)):
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no run to resume; start without --resume.")
        logging.getLogger(__name__).warning(
            f"{str(folder)!r} was stopped before the end of its first epoch: it starts from the beginning."
        )
        return
    path, content = _read_last(folder)
    if content["epoch"] >= trainer.state.max_epochs:
        raise ValueError(f"{str(path)!r} has all {content['epoch']} epochs already; raise --epochs to train on.")
    refuse_other_network(str(path), content["network"], checkpoints.network)
    checkpoints.network.load_state_dict(content["network"])
    checkpoints.optimizer.load_state_dict(content["optimizer"])
    # the length of the schedule is that of this run, which may be longer than the one that stopped
    planned = content["lr_scheduler"].pop("total_iters", None)
    checkpoints.lr_scheduler.load_state_dict(content["lr_scheduler"])
    if planned is not None and planned != checkpoints.lr_scheduler.total_iters:
        # it goes on from the rate before, and that of a schedule at its end is 0
        for group, rate in zip(checkpoints.optimizer.param_groups, checkpoints.lr_scheduler._get_closed_form_lr()):
            group["lr"] = rate
    trainer.state.epoch = content["epoch"]
    trainer.state.iteration = content["epoch"] * trainer.state.epoch_length
    checkpoints.validator.state.best_metric = content["best_metric"]
    checkpoints.validator.state.best_metric_epoch = content["best_metric_epoch"]

    @trainer.on(Events.STARTED)
    def restore_scaler(engine: Workflow) -> None:
        # MONAI makes the scaler when the run begins
        if content["scaler"] and engine.scaler is not None:
            engine.scaler.load_state_dict(content["scaler"])


def start_weights(path: str | None, network: torch.nn.Module, output_dir: str, resume: bool = False) -> None:
    """Begin a training with the weights of another: to finish it with another loss, or on other data.

    Nothing else is taken over: the rate, its schedule, momentum and the number of the epoch are those of a new run.
    Heads that only training has are in ``last.pt``; with a ``model.pt`` they begin at random.

    Args:
        path: ``model.pt`` or ``last.pt`` of a run; None leaves the network as it is.
        network: as it is trained; those within, when it is a DistributedDataParallel.
        output_dir: folder of the new run.
        resume: whether a run in ``output_dir`` goes on, whose own weights then count.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it belongs to another network; the first layers that differ are named.
    """
    if path is None or (resume and finished_epochs(Path(output_dir)) > 0):
        return
    if not Path(path).is_file():
        raise FileNotFoundError(f"start_from {path!r} is not there; name model.pt or last.pt of a run.")
    network = network.module if isinstance(network, DistributedDataParallel) else network
    weights = torch.load(path, map_location="cpu", weights_only=True)
    if "network" in weights and "epoch" in weights:
        weights = weights["network"]
    with_heads = network.state_dict().keys() == weights.keys()
    part = network if with_heads else inference_network(network)
    refuse_other_network(path, weights, part)
    part.load_state_dict(weights)


def _read_last(folder: Path) -> tuple[Path, dict[str, Any]]:
    """``last.pt``, or ``previous.pt`` where the former is not there (killed between two renames) or damaged."""
    if (folder / LAST).is_file():
        try:
            return folder / LAST, torch.load(folder / LAST, map_location="cpu", weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError) as error:
            if not (folder / PREVIOUS).is_file():
                raise
            logging.getLogger(__name__).warning(f"{LAST} cannot be read ({error}): {PREVIOUS} is taken instead.")
    return folder / PREVIOUS, torch.load(folder / PREVIOUS, map_location="cpu", weights_only=True)

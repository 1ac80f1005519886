"""Beside the step "loss -> model.pt": how a training goes, as a table and in TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import IterationEvents, Workflow
from monai.utils import CommonKeys, convert_to_numpy, convert_to_tensor, optional_import

from .files import replace
from .handlers import loss_terms
from .overlays import draw_outlines
from .processes import average, is_first

__all__ = ["CURVE", "Curves", "mean_of_cases"]

SummaryWriter, _has_tensorboard = optional_import("torch.utils.tensorboard", name="SummaryWriter")

CURVE = "curve.csv"


class Curves:
    """Write ``curve.csv``, a row an epoch, and, where tensorboard is installed, events with the same and more.

    The row holds minutes (without validation), learning rate, the mean over the epoch of the loss and of each of its
    terms, and the validation scores. TensorBoard also gets each score of each class, and pictures of the first held-out
    cases: the brightest voxels along the last axis with the outlines of reference and prediction. A resumed run goes on
    with the curve where its checkpoint was written.

    Stands after the ValidationHandler and before the checkpoints, so that no epoch that was written lacks its row.

    Args:
        output_dir: folder of the run.
        optimizer: whose learning rate is written.
        loss: whose terms, if it has any, are written.
        validator: evaluator whose metrics are written.
        class_names: background first.
        pictures: cases drawn in each validation; 0 for none.
    """

    def __init__(
        self,
        output_dir: str,
        optimizer: torch.optim.Optimizer,
        loss: torch.nn.Module,
        validator: Workflow,
        class_names: Sequence[str],
        pictures: int = 3,
    ) -> None:
        self.folder = Path(output_dir)
        self.optimizer = optimizer
        self.loss = loss
        self.validator = validator
        self.class_names = list(class_names)
        self.pictures = pictures
        self._rows: list[dict[str, Any]] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._learning_rate = 0.0
        self._drawn: list[tuple[str, np.ndarray]] = []
        self._events: Any = None

    def attach(self, engine: Workflow) -> None:
        """
        Args:
            engine: the trainer.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        # later, MONAI takes the output apart into the items of the batch
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._add_losses)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        if is_first() and _has_tensorboard and self.pictures > 0:
            self.validator.add_event_handler(Events.ITERATION_COMPLETED, self._draw)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def __call__(self, engine: Workflow) -> None:
        # every process takes part in this sum
        means = _means_over_processes(self._sums, engine.state.epoch_length, engine.state.device)
        if not is_first():
            return
        epoch = engine.state.epoch
        row = {
            "epoch": epoch,
            "minutes": engine.state.times[Events.EPOCH_COMPLETED.name] / 60,
            "learning_rate": self._learning_rate,
            **means,
        }
        validated = self.validator.state.epoch == epoch
        if validated:
            row |= {name: float(value) for name, value in self.validator.state.metrics.items()}
        self._rows.append(row)
        replace(self.folder / CURVE, lambda beside: beside.write_text(_table(self._rows), encoding="utf-8"))
        if self._events is not None:
            self._write_events(row, epoch, validated)

    def _write_events(self, row: Mapping[str, float], epoch: int, validated: bool) -> None:
        for name, value in row.items():
            if name != "epoch":
                self._events.add_scalar(f"{name}/mean" if name in self.validator.state.metrics else name, value, epoch)
        if validated:
            for metric, scores in self.validator.state.metric_details.items():
                of_class = mean_of_cases(convert_to_numpy(scores))
                for name, value in zip(self.class_names[-len(of_class) :], of_class):
                    if not math.isnan(value):
                        self._events.add_scalar(f"{metric}/{name}", value, epoch)
            for name, picture in self._drawn:
                self._events.add_image(f"held out/{name}", picture, epoch, dataformats="HWC")
            self._drawn = []
        self._events.flush()

    def _start(self, engine: Workflow) -> None:
        if not is_first():
            return
        before = self.folder / CURVE
        if engine.state.epoch > 0 and before.is_file():
            self._rows = _read_table(before, until=engine.state.epoch)
        if _has_tensorboard:
            # events of epochs that a kill cost are taken back
            self._events = SummaryWriter(str(self.folder / "tensorboard"), purge_step=engine.state.epoch + 1)

    def _start_epoch(self, engine: Workflow) -> None:
        self._sums, self._learning_rate = {}, float(self.optimizer.param_groups[0]["lr"])

    def _add_losses(self, engine: Workflow) -> None:
        for name, value in {"loss": engine.state.output[CommonKeys.LOSS], **loss_terms(self.loss)}.items():
            # on the device: reading each number would make the GPU wait
            self._sums[name] = self._sums.get(name, 0) + convert_to_tensor(value.detach(), track_meta=False).double()

    def _draw(self, engine: Workflow) -> None:
        if engine.state.iteration == 1:
            self._drawn = []
        for case in engine.state.output:
            if len(self._drawn) < self.pictures:
                image, reference, pred = (
                    convert_to_numpy(case[key])[0] for key in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED)
                )
                file = str(getattr(case[CommonKeys.IMAGE], "meta", {}).get("filename_or_obj", len(self._drawn)))
                picture = draw_outlines(image=image, reference=reference > 0, pred=pred > 0)
                self._drawn.append((Path(file).name, picture))

    def _close(self, engine: Workflow) -> None:
        if self._events is not None:
            self._events.close()


def mean_of_cases(scores: np.ndarray) -> np.ndarray:
    """Mean of each class over the cases that have a score; NaN where none has.

    Args:
        scores: shape (cases, classes); NaN: nothing to score.
    """
    counted = (~np.isnan(scores)).sum(0)
    return np.where(counted > 0, np.nansum(scores, 0) / np.maximum(counted, 1), np.nan)


def _means_over_processes(sums: Mapping[str, torch.Tensor], iterations: int, device: torch.device) -> dict[str, float]:
    values = torch.stack([value.to(device, torch.float32) for value in sums.values()]) / iterations
    return dict(zip(sums, average(values).tolist()))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_table(path: Path, until: int) -> list[dict[str, Any]]:
    with open(path, newline="", encoding="utf-8") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if int(row["epoch"]) <= until]

"""Step "model.pt -> logits" with several networks: runs that vote, as one network and one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from .checkpoints import WEIGHTS
from .files import replace
from .workflows import FACTS, TASK, write_yaml

__all__ = ["Ensemble", "write_ensemble"]


class Ensemble(torch.nn.Module):
    r"""Networks of one kind whose probabilities are averaged.

    .. math::
        \log \frac{1}{M} \sum_m \mathrm{softmax}(f_m(x))

    The logarithm makes the output what a single network's is, logits, so whatever takes one network takes an ensemble;
    with one member the classes predicted are that member's. All members are held in memory (the default network takes
    0.12 GB each) and see each window one after the other, so a scan is read and resampled once.

    Args:
        member: makes one network; its output has a channel a class, background included.
        size: number of members.

    Raises:
        ValueError: when there would be no member.
    """

    def __init__(self, member: Callable[[], torch.nn.Module], size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"an ensemble needs at least one member, got size {size}.")
        self.members = torch.nn.ModuleList(member() for _ in range(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: image, shape BCH[WD].

        Returns:
            Logarithm of the mean probability, shape BNH[WD].
        """
        total = torch.full([1], float("-inf"), device=x.device)
        for member in self.members:  # one after the other: two outputs are held, not one of each member
            total = torch.logaddexp(total, torch.log_softmax(member(x), dim=1))
        return total - torch.log(torch.tensor(float(len(self.members)), device=x.device))


def write_ensemble(runs: Sequence[str], output_dir: str) -> None:
    """Join the networks of several runs in a folder that evaluation and inference take like that of a run.

    ``model.pt`` holds the weights of all; ``task.yaml`` the facts, on which the runs must agree, and
    :py:class:`Ensemble` as the network. Evaluation with it scores every case of a folder (``fold: all``).

    Args:
        runs: folders of runs.
        output_dir: gets ``model.pt`` and ``task.yaml``.

    Raises:
        FileNotFoundError: when a run has no ``model.pt`` or no ``task.yaml``.
        ValueError: when there is no run, ``output_dir`` is one of them, or they differ in a fact or in their network.
    """
    folders, target = [Path(run) for run in runs], Path(output_dir)
    if not folders:
        raise ValueError("there are no runs to join: set --runs to a list of folders.")
    if target.resolve() in [folder.resolve() for folder in folders]:
        raise ValueError(f"output_dir {output_dir!r} is one of the runs, whose weights would be lost; take another.")
    for folder in folders:
        for name in (WEIGHTS, TASK):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"run {str(folder)!r} has no {name}; train it first.")
    tasks: list[dict[str, Any]] = [yaml.safe_load((folder / TASK).read_text(encoding="utf-8")) for folder in folders]
    first = tasks[0]
    for folder, task in zip(folders, tasks):
        differing = [
            name for name in (*FACTS, "network_def") if name != "checkpoint" and task.get(name) != first.get(name)
        ]
        if differing:
            raise ValueError(
                f"runs {runs[0]!r} and {str(folder)!r} differ in {', '.join(differing)}: expected one task."
            )
    weights = {
        f"members.{number}.{name}": value
        for number, folder in enumerate(folders)
        for name, value in torch.load(folder / WEIGHTS, map_location="cpu", weights_only=True).items()
    }
    target.mkdir(parents=True, exist_ok=True)
    replace(target / WEIGHTS, lambda beside: torch.save(weights, beside))
    facts = {
        **first,
        "fold": "all",
        "checkpoint": str((target / WEIGHTS).resolve()),
        "network_def": {
            "_target_": "monai_skelrec.ensembles.Ensemble",
            "member": {**first["network_def"], "_mode_": "callable"},
            "size": len(folders),
        },
    }
    write_yaml(
        target / TASK, facts, "# Facts of the task and of an ensemble: lay it over evaluate.yaml or inference.json."
    )

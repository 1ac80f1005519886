"""What several training or evaluating processes, started by ``torchrun``, share: how they meet, and who does what."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar, cast

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

__all__ = ["average", "is_first", "join", "leave", "local_device", "own_share", "share_network", "wait_for_all"]

# The longest that one process may wait for another, a validation of unequal shares included. An error elsewhere ends
# the wait at once: torchrun stops every process when one of them fails.
_PATIENCE = timedelta(hours=2)

Item = TypeVar("Item")


def local_device() -> torch.device:
    """The GPU of this process, by its number on this machine, or the CPU where there is no GPU.

    Raises:
        ValueError: when the machine has fewer GPUs than processes were started on it.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", 0))
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"this is process {number + 1} of this machine, which has {torch.cuda.device_count()} GPU(s): lower "
            "torchrun's --nproc_per_node, or train on CPUs with --device cpu."
        )
    return torch.device("cuda", number)


def join(device: torch.device | str) -> None:
    """Meet the other processes that ``torchrun`` started: through NCCL on GPUs, Gloo on CPUs.

    Processes other than the first one log errors only.

    Args:
        device: of this process.

    Raises:
        ValueError: when this process was not started by ``torchrun``.
    """
    if not dist.is_initialized():
        if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
            raise ValueError(
                "several processes are started by torchrun: torchrun --standalone --nproc_per_node 2 "
                "-m monai.bundle run ...; for a single one leave the multi_gpu file out."
            )
        device = torch.device(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_PATIENCE)
    if not is_first():
        logging.disable(logging.WARNING)


def leave() -> None:
    """Part from the other processes at the end of a run that succeeded."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every process has come this far.

    A training ends with it: a thread of Gloo lets go of a tensor a moment after it was summed, and a process that has
    nothing left to do could be at its end by then, where Python takes no tensor back and the process is killed.
    """
    idist.barrier()


def is_first() -> bool:
    """Whether this process is the one that writes and prints; a single process is."""
    return bool(idist.get_rank() == 0)


def average(values: torch.Tensor) -> torch.Tensor:
    """Mean over the processes; every one of them must take part.

    Args:
        values: on the device of this process, of one shape everywhere.
    """
    return cast(torch.Tensor, idist.all_reduce(values)) / idist.get_world_size()


def share_network(network: torch.nn.Module, device: torch.device | str) -> DistributedDataParallel:
    """Make the processes train one network: weights start as the first one's, gradients are averaged.

    Args:
        network: the same on every process; moved to ``device``.
        device: of this process.
    """
    device = torch.device(device)
    return DistributedDataParallel(network.to(device), device_ids=[device] if device.type == "cuda" else None)


def own_share(items: Sequence[Item]) -> list[Item]:
    """What this process takes of a list, in one piece; the pieces of all processes in their order are the list.

    Args:
        items: such as the held-out cases; their number need not be a multiple of that of the processes.

    Raises:
        ValueError: when there are more processes than items: the metrics are gathered, and wait for every process.
    """
    processes, rank = idist.get_world_size(), idist.get_rank()
    if len(items) < processes:
        raise ValueError(
            f"{processes} processes cannot share {len(items)} case(s): start at most {len(items)}, or set --folds or "
            "--fold so that more are scored."
        )
    return list(items[len(items) * rank // processes : len(items) * (rank + 1) // processes])

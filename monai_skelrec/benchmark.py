"""What a loss costs, side by side: time and memory of a forward and backward pass, and of a whole training step.

Each measurement is a process of its own, so that no loss profits from memory another left behind, and running out of
memory is a result. Losses take turns, so that a busy machine disturbs all of them alike.
"""

from __future__ import annotations

import csv
import math
import multiprocessing
import platform
import re
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import monai
import torch
from monai.losses import DiceCELoss, SoftclDiceLoss
from monai.networks import one_hot
from monai.utils import optional_import
from tqdm import tqdm

from . import baselines
from .losses import DiceCESkeletonRecallLoss
from .peak_memory import peak_bytes

__all__ = ["LOSSES", "RIVALS", "published_recall", "run_benchmark"]

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

BASELINE, OURS = "Dice + CE", "+ skeleton recall, ours"
LOSSES = (BASELINE, OURS, "+ skeleton recall, published", "+ clDice")
# measured when they are named
RIVALS = ("+ clDice, ours", "+ topo-clDice", "+ cbDice", "+ clCE", "SCNP")
COLOURS = dict(
    zip(
        (*LOSSES, *RIVALS),
        ("#3c4654", "#d64a28", "#e3a13b", "#3f7fbf", "#76b7e8", "#6a4c93", "#2a9d8f", "#8ab17d", "#b56576"),
    )
)

LOSS_ONLY, STEP = "loss", "training step"
DONE, NO_MEMORY = "", "out of memory"
GPU_CALLS = 10  # milliseconds each; on a CPU one call is long enough


class Case(NamedTuple):
    """One cell of the tables; as a row of the CSV it is followed by what was measured."""

    what: str
    device: str
    loss: str
    n_classes: int
    batch_size: int
    patch_size: tuple[int, ...]


class Cost(NamedTuple):
    """What a case costs; ``failure`` says why nothing could be measured."""

    seconds: float
    mebibytes: float
    failure: str = DONE


def published_recall(input: torch.Tensor, tube: torch.Tensor) -> torch.Tensor:
    """One minus soft recall as the authors compute it: softmax and one-hot tube, on all voxels of all classes.

    Args:
        input: logits, shape BNH[WD].
        tube: class indices, shape B1H[WD].

    Returns:
        Scalar.
    """
    p = torch.softmax(input, 1)[:, 1:]
    t = one_hot(tube, input.shape[1])[:, 1:]
    axes = list(range(2, input.ndim))
    return 1 - (((p * t).sum(axes) + 1e-5) / (t.sum(axes) + 1e-5).clip(1e-8)).mean()


def _loss(name: str, cldice_iterations: int) -> Loss:
    """A function of logits, and of label and tube stacked on the channel axis."""
    dice_ce = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    cldice = SoftclDiceLoss(iter_=cldice_iterations, include_background=False, to_onehot_y=True, softmax=True)
    losses: dict[str, Loss] = {
        BASELINE: lambda x, target: dice_ce(x, target[:, :1]),
        OURS: DiceCESkeletonRecallLoss(),
        LOSSES[2]: lambda x, target: dice_ce(x, target[:, :1]) + published_recall(x, target[:, 1:]),
        LOSSES[3]: lambda x, target: dice_ce(x, target[:, :1]) + cldice(x, target[:, :1]),
        RIVALS[0]: baselines.DiceCEclDiceLoss(cldice_iterations),
        RIVALS[1]: baselines.DiceCETopoclDiceLoss(cldice_iterations),
        RIVALS[2]: baselines.DiceCEcbDiceLoss(cldice_iterations),
        RIVALS[3]: baselines.DiceCEclCELoss(cldice_iterations),
        RIVALS[4]: baselines.SCNPDiceCELoss(),
    }
    return losses[name]


def run_benchmark(
    output_dir: str | Path,
    patch_size: Sequence[int],
    classes: Sequence[int],
    batch_sizes: Sequence[int],
    devices: Sequence[str],
    losses: Sequence[str] = LOSSES,
    repeats: int = 5,
    memory_limit: float | None = None,
    time_limit: float = 600,
    cldice_iterations: int = 3,
    network: Callable[..., torch.nn.Module] | None = None,
    step_patch_size: Sequence[int] | None = None,
    step_classes: Sequence[int] = (),
    step_batch_sizes: Sequence[int] = (),
    in_channels: int = 1,
) -> list[tuple[Case, Cost]]:
    """Measure losses alone and within a training step; write a CSV file, a Markdown table and a picture.

    Args:
        output_dir: gets ``benchmark.csv``, ``benchmark.md`` and, where matplotlib is installed, ``benchmark.png``.
        patch_size: voxels.
        classes: numbers of classes, background included.
        batch_sizes: patches a batch.
        devices: such as ``["cpu", "cuda"]``.
        losses: of ``LOSSES`` and ``RIVALS``.
        repeats: rounds in which every loss is measured once; the median time and the largest memory count.
        memory_limit: gigabytes that a process may take on a CPU; more is "out of memory". None: no limit.
        time_limit: seconds after which a measurement is given up.
        cldice_iterations: of the skeletons of clDice and its descendants.
        network: from the keyword ``out_channels`` to the network of the training step; None measures no step.
        step_patch_size: as ``patch_size``, for the training step.
        step_classes: as ``classes``, for the training step.
        step_batch_sizes: as ``batch_sizes``, for the training step.
        in_channels: of the network.

    Returns:
        Each case with its cost.

    Raises:
        ValueError: when ``losses`` holds an unknown name.
        RuntimeError: when a measurement fails for another reason than memory or time.
    """
    unknown = [name for name in losses if name not in COLOURS]
    if unknown:
        raise ValueError(f"losses must be of {'; '.join(COLOURS)}; got {'; '.join(unknown)}.")
    groups = [(LOSS_ONLY, d, n, b, tuple(patch_size)) for d in devices for b in batch_sizes for n in classes]
    if network is not None:
        size = tuple(step_patch_size or patch_size)
        groups += [(STEP, d, n, b, size) for d in devices for b in step_batch_sizes for n in step_classes]
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Case, Cost]] = []
    with tqdm(total=len(groups) * len(losses) * repeats, desc="benchmark", unit="run") as progress:
        for what, device, n_classes, batch_size, size in groups:
            cases = [Case(what, device, name, n_classes, batch_size, size) for name in losses]
            measured: dict[Case, list[Cost]] = {case: [] for case in cases}
            for _ in range(repeats):
                for case, costs in measured.items():
                    if not any(cost.failure for cost in costs):
                        options = (cldice_iterations, memory_limit, network, in_channels)
                        costs.append(_in_a_process(case, time_limit, options))
                    progress.update()
            rows += [(case, _typical(costs)) for case, costs in measured.items()]
            # each time anew: whoever stops a long run keeps what was measured
            _write_csv(rows, folder / "benchmark.csv")
            (folder / "benchmark.md").write_text(_markdown(rows, repeats))
    if optional_import("matplotlib")[1]:
        _draw(rows, folder / "benchmark.png")
    return rows


def _typical(costs: list[Cost]) -> Cost:
    if costs[-1].failure:
        return costs[-1]
    return Cost(statistics.median(cost.seconds for cost in costs), max(cost.mebibytes for cost in costs))


# --- one measurement -------------------------------------------------------------------------------------------------


def _in_a_process(case: Case, time_limit: float, options: tuple[Any, ...]) -> Cost:
    # a server that has imported everything, and has never computed, forks off a clean process at once
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, case, *options), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(time_limit):
            return Cost(0, 0, f"over {time_limit:g} s")
        cost: Cost | str = receiver.recv()
    except EOFError:  # it could say no more: the system ends a process that takes too much memory
        cost = Cost(0, 0, NO_MEMORY)
    finally:
        process.kill()
        process.join()
    if isinstance(cost, str):
        raise RuntimeError(f"measuring {case.loss} with {case.n_classes} classes failed: {cost}")
    return cost


def _report(sender: Connection, case: Case, *options: Any) -> None:
    try:
        sender.send(_measure(case, *options))
    except Exception as error:  # whatever it is, the process that asked reports it
        # each library says in its own words that it got no memory, or none for the stack of a thread
        no_memory = isinstance(error, MemoryError) or re.search("alloc|memory|new thread", str(error))
        sender.send(Cost(0, 0, NO_MEMORY) if no_memory else str(error))


def _measure(
    case: Case,
    cldice_iterations: int,
    memory_limit: float | None,
    network: Callable[..., torch.nn.Module] | None,
    in_channels: int,
) -> Cost:
    """Time of a call and the memory it takes beyond what was there before, the gradient included."""
    on_gpu = case.device != "cpu"
    if memory_limit is not None and not on_gpu:
        limit = int(memory_limit * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.manual_seed(0)
    device = torch.device(case.device)
    loss = _loss(case.loss, cldice_iterations)
    model = None if network is None or case.what == LOSS_ONLY else network(out_channels=case.n_classes).to(device)
    optimizer = None if model is None else torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.99, nesterov=True)

    def call(x: torch.Tensor, target: torch.Tensor) -> None:
        if model is None or optimizer is None:
            x.grad = None
            loss(x, target).backward()
        else:
            optimizer.zero_grad()
            loss(model(x), target).backward()
            optimizer.step()
        if on_gpu:
            torch.cuda.synchronize(device)

    channels = case.n_classes if model is None else in_channels
    if model is None:  # libraries load and threads start here
        call(*_inputs(case._replace(batch_size=1, patch_size=(8,) * len(case.patch_size)), channels, device))
    x, target = _inputs(case, channels, device)
    before = peak_bytes(device, reset=True)
    call(x, target)
    after = peak_bytes(device)
    n_calls = GPU_CALLS if on_gpu else 1
    start = time.perf_counter()
    for _ in range(n_calls):
        call(x, target)
    return Cost((time.perf_counter() - start) / n_calls, (after - before) / 2**20)


def _inputs(case: Case, channels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Normal logits or image; 3 % foreground of random classes, 30 % of it tube; all made in place."""
    x = torch.empty(case.batch_size, channels, *case.patch_size, device=device).normal_()
    target = torch.empty(case.batch_size, 2, *case.patch_size, device=device).uniform_()
    label, tube = target[:, :1], target[:, 1:]
    label.sub_(0.97).mul_((case.n_classes - 1) / 0.03).ceil_().clamp_(0, case.n_classes - 1)
    tube.lt_(0.3).mul_(label)
    return x.requires_grad_(case.what == LOSS_ONLY), target


# --- tables and picture ----------------------------------------------------------------------------------------------


def _write_csv(rows: list[tuple[Case, Cost]], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*Case._fields, *Cost._fields])
        for case, cost in rows:
            values = ["", "", cost.failure] if cost.failure else [f"{cost.seconds:.5f}", f"{cost.mebibytes:.1f}", ""]
            writer.writerow([*case[:-1], "x".join(map(str, case.patch_size)), *values])


def _markdown(rows: list[tuple[Case, Cost]], repeats: int) -> str:
    """A table for each kind, device and batch size; in brackets the ratio to the baseline."""
    costs = dict(rows)
    names = [name for name in COLOURS if any(case.loss == name for case in costs)]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if any(case.device != "cpu" for case in costs):
        machine += f", {torch.cuda.get_device_name()}"
    lines = [
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, MONAI {monai.__version__}, {machine}.",
        f"Median time of {repeats} rounds and largest memory beyond what was there before a forward and backward pass;",
        f"in brackets the ratio to {BASELINE}.",
    ]
    tables = dict.fromkeys((case.what, case.device, case.batch_size, case.patch_size) for case in costs)
    for what, device, batch_size, patch_size in tables:
        size = " x ".join(map(str, patch_size))
        lines += ["", f"**{what}, {device}, batch size {batch_size}, {size} voxels**", ""]
        lines += [f"| classes | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for n_classes in dict.fromkeys(c.n_classes for c in costs if (c.what, c.device) == (what, device)):
            row = [costs.get(Case(what, device, name, n_classes, batch_size, patch_size)) for name in names]
            if any(row):
                lines.append(f"| {n_classes} | {' | '.join(_cell(cost, row[0]) for cost in row)} |")
    return "\n".join(lines) + "\n"


def _cell(cost: Cost | None, baseline: Cost | None) -> str:
    if cost is None or cost.failure:
        return "" if cost is None else cost.failure
    seconds, mebibytes = f"{cost.seconds:.3g} s", f"{cost.mebibytes:.0f} MiB"
    if baseline is None or baseline is cost or baseline.failure:
        return f"{seconds}, {mebibytes}"
    times, memory = _ratio(cost.seconds, baseline.seconds), _ratio(cost.mebibytes, baseline.mebibytes)
    return f"{seconds} ({times:.2f}x), {mebibytes} ({memory:.2f}x)"


def _ratio(value: float, baseline: float) -> float:
    # a baseline that failed, or too small for its memory to be seen, has none
    return value / baseline if baseline > 0 else math.nan


def _draw(rows: list[tuple[Case, Cost]], path: Path) -> None:
    """Cost against number of classes, as Figure 7 of the paper; for training steps the extra cost, as Figure 6."""
    figures, _ = optional_import("matplotlib.figure")
    panels = list(dict.fromkeys((case.what, case.device) for case, _ in rows))
    figure = figures.Figure(figsize=(11, 4.2 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False)
    for (what, device), pair in zip(panels, axes):
        shown = [(case, cost) for case, cost in rows if (case.what, case.device) == (what, device)]
        size = " x ".join(map(str, shown[0][0].patch_size))
        batch_sizes = sorted({case.batch_size for case, _ in shown}, reverse=True)
        dashes = f", solid: batch {batch_sizes[0]}, dashed: smaller" if what == LOSS_ONLY and batch_sizes[1:] else ""
        for axis, quantity, unit in zip(pair, ("seconds", "mebibytes"), ("time, s", "memory, MiB")):
            (_lines if what == LOSS_ONLY else _bars)(axis, shown, quantity, unit)
            axis.set_title(f"{what}, {device}, {size} voxels{dashes}", fontsize=10)
            axis.spines[["top", "right"]].set_visible(False)
    named: dict[str, Any] = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        named = {**dict(zip(labels, handles)), **named}
    figure.legend(
        named.values(), named.keys(), loc="outside upper center", ncols=len(LOSSES) + 1, fontsize=9, frameon=False
    )
    figure.savefig(path, dpi=100)


def _lines(axis: Any, rows: list[tuple[Case, Cost]], quantity: str, unit: str) -> None:
    batch_sizes = sorted({case.batch_size for case, _ in rows})
    for name in dict.fromkeys(case.loss for case, _ in rows):
        for batch_size, style in zip(reversed(batch_sizes), ("-", "--", "-.", ":")):
            line = [(case, cost) for case, cost in rows if (case.loss, case.batch_size) == (name, batch_size)]
            done = [(case.n_classes, getattr(cost, quantity)) for case, cost in line if not cost.failure]
            x, y = [n for n, _ in done], [value for _, value in done]
            label = name if style == "-" else None
            axis.plot(x, y, marker="o", markersize=4, linestyle=style, color=COLOURS[name], label=label)
            failed = next(((case.n_classes, cost.failure) for case, cost in line if cost.failure), None)
            if failed is not None and done:
                axis.plot(failed[0], y[-1], marker="x", linestyle="none", color=COLOURS[name], label=failed[1])
    ticks = sorted({case.n_classes for case, _ in rows})
    axis.set(xscale="log", xlabel="classes", ylabel=unit)
    if any(getattr(cost, quantity) > 0 for _, cost in rows):
        axis.set_yscale("log")
    axis.set_xticks(ticks, labels=[str(tick) for tick in ticks], minor=False)
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)


def _bars(axis: Any, rows: list[tuple[Case, Cost]], quantity: str, unit: str) -> None:
    costs = dict(rows)
    groups = list(dict.fromkeys((case.n_classes, case.batch_size) for case in costs))
    names = [name for name in dict.fromkeys(case.loss for case in costs) if name != BASELINE]
    width = 0.8 / max(1, len(names))
    for index, name in enumerate(names):
        for place, (n_classes, batch_size) in enumerate(groups):
            case = next(c for c in costs if (c.loss, c.n_classes, c.batch_size) == (name, n_classes, batch_size))
            cost, baseline = costs[case], costs.get(case._replace(loss=BASELINE), Cost(0, 0, NO_MEMORY))
            extra = 100 * (_ratio(getattr(cost, quantity), getattr(baseline, quantity)) - 1)
            height = 0 if cost.failure or math.isnan(extra) else extra
            at = place + (index - (len(names) - 1) / 2) * width
            axis.bar(at, height, width, color=COLOURS[name], label=name if place == 0 else None)
            text = cost.failure or f"{extra:+.0f} %"
            side = {"xytext": (0, 2), "va": "bottom"} if height >= 0 else {"xytext": (0, -2), "va": "top"}
            axis.annotate(text, (at, height), **side, textcoords="offset points", ha="center", size=8)
    axis.axhline(0, color=COLOURS[BASELINE], linestyle="--")
    axis.set_xticks(range(len(groups)), labels=[f"{n} classes, batch {b}" for n, b in groups])
    axis.set_ylabel(f"{unit.split(',')[0]}, % beside {BASELINE}")
    axis.margins(y=0.15)

"""Planted faults -> tables: what each step of post-processing mends, and what it harms, on phantoms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from .centerline_graphs import centerline_graph, inscribed_radii
from .contacts import CONTACTS, allowed_contacts, fix_contacts
from .faults import mask_faults
from .files import replace
from .phantoms import circle_of_willis, jaw
from .planted_faults import Planted, plant_faults
from .postprocessing import drop_islands, keep_largest
from .reconnections import Link, draw_link, reconnect
from .skeletons import skeleton
from .willis_topology import LABELS

__all__ = ["KINDS", "compare_repairs", "random_repair"]

KINDS = ("arteries, 13 classes", "arteries, one class", "canals in a jaw")

_NAMES = ["background", *LABELS.values()]
# the phantom's vessels that meet in a point touch there, which they do not in life
_POINTS = (("R-PCA", "L-PCA"), ("R-MCA", "R-ACA"), ("L-MCA", "L-ACA"), ("R-MCA", "R-Pcom"), ("L-MCA", "L-Pcom"))

Repair = Callable[[Planted], np.ndarray]


def compare_repairs(output_dir: str | Path, cases: int = 12, max_gap: float = 8.0, kinds: Sequence[str] = KINDS) -> str:
    """Count on phantoms what each repair mends and harms, and write ``repairs.md``.

    Args:
        output_dir: folder to write to.
        cases: phantoms of each kind.
        max_gap: voxels; see :py:func:`monai_skelrec.reconnections.reconnect`.
        kinds: of phantoms with breaks, some of :py:data:`KINDS`.

    Returns:
        The tables, Markdown.
    """
    joins: dict[str, Repair] = {
        "nothing": lambda planted: planted.label,
        "random links": lambda planted: random_repair(planted, max_gap),
    }
    for least in (0.05, 0.15, 0.25, 0.35):
        joins[f"reconnect, min_probability {least}"] = partial(_reconnect, max_gap=max_gap, min_probability=least)
    allowed = allowed_contacts((*CONTACTS["topcow"], *_POINTS), _NAMES)
    cleans: dict[str, Repair] = {
        "nothing": lambda planted: planted.label,
        "drop_islands, 20 voxels": lambda planted: drop_islands(planted.label, 20),
        "keep_largest, 1": lambda planted: keep_largest(planted.label, {index: 1 for index in range(1, len(_NAMES))}),
        "fix_contacts": lambda planted: fix_contacts(planted.label, allowed, _NAMES),
        "fix_contacts, isolated dropped": lambda planted: fix_contacts(planted.label, allowed, _NAMES, isolated="drop"),
        "fix_contacts, then drop_islands": lambda planted: drop_islands(
            fix_contacts(planted.label, allowed, _NAMES), 20
        ),
    }
    lines = [
        "| phantom | repair | breaks | mended | false merges | added | clDice |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in kinds:
        planted = list(_broken(kind, cases))
        before = [_faults(case.label, case.reference) for case in planted]
        for name, repair in tqdm(joins.items(), desc=kind, unit="repair"):
            after = [_faults(repair(case), case.reference) for case in planted]
            breaks, merges, scores = (np.array(column) for column in zip(*after, strict=True))
            had, joined = (sum(values) for values in list(zip(*before, strict=True))[:2])
            lines.append(
                f"| {kind} | {name} | {breaks.sum()} | {1 - breaks.sum() / had:.0%} | {merges.sum()} "
                f"| {merges.sum() - joined} | {scores.mean():.3f} |"
            )
    lines += [
        "",
        "| repair | vessel of a wrong class | background taken for vessel | vessel lost | components too many |",
        "| --- | --- | --- | --- | --- |",
    ]
    strayed = [
        plant_faults(_circle(seed), len(_NAMES), seed, breaks=0, decoys=0, strays=6) for seed in range(1, cases + 1)
    ]
    for name, repair in tqdm(cleans.items(), desc="strays", unit="repair"):
        counts = np.sum([_strays(repair(case), case.reference) for case in strayed], axis=0)
        lines.append(f"| {name} | {' | '.join(map(str, counts.tolist()))} |")
    text = "\n".join(lines) + "\n"
    path = Path(output_dir) / "repairs.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    return text


def random_repair(planted: Planted, max_gap: float, seed: int = 0) -> np.ndarray:
    """Join as many fragments as :py:func:`monai_skelrec.reconnections.reconnect` does, at random.

    A straight link from a random end of a fragment's centreline to a random end of another fragment of its class that
    lies within ``max_gap``, as thick as the first.
    """
    out = planted.label
    _, drawn = reconnect(out, planted.probabilities, max_gap=max_gap, min_probability=0.0)
    rng = np.random.default_rng([seed, 11])
    for index, number in zip(*np.unique([link.index for link in drawn], return_counts=True), strict=True):
        mask = out == index
        fragments, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
        graph = centerline_graph(skeleton(mask))
        ends = graph.points[np.bincount(graph.edges.ravel(), minlength=len(graph.points)) <= 1]
        own = fragments[tuple(ends.T)]
        apart = np.linalg.norm(ends[:, None] - ends, axis=-1)
        pairs = np.argwhere((own[:, None] != own) & (apart <= max_gap + 4))
        for one, other in rng.permutation(pairs)[:number]:
            path = np.rint(np.linspace(ends[one], ends[other], int(2 * apart[one, other]) + 2)).astype(int)
            radii = np.full(len(path), inscribed_radii(mask, ends[one][None])[0])
            draw_link(out, Link(int(index), (int(own[one]), int(own[other])), path, radii, apart[one, other], 0.0))
    return out


def _reconnect(planted: Planted, max_gap: float, min_probability: float) -> np.ndarray:
    return reconnect(planted.label, planted.probabilities, max_gap=max_gap, min_probability=min_probability)[0]


def _broken(kind: str, cases: int) -> Iterator[Planted]:
    for seed in range(1, cases + 1):
        if kind == KINDS[2]:
            label = jaw(seed)
            reference = np.where(label == 3, 1, np.where(label == 4, 2, 0)).astype(np.uint8)
        elif kind == KINDS[1]:
            reference = (_circle(seed) > 0).astype(np.uint8)
        else:
            reference = _circle(seed)
        yield plant_faults(reference, max(int(reference.max()) + 1, 2), seed)


def _circle(seed: int) -> np.ndarray:
    label = circle_of_willis(seed)
    label[label == 15] = 13
    return label


def _faults(label: np.ndarray, reference: np.ndarray) -> tuple[int, int, float]:
    """Breaks and false merges of all classes, and their mean centreline Dice."""
    breaks = merges = 0
    scores = []
    for index in np.unique(reference[reference > 0]):
        pred, expected = label == index, reference == index
        lines = skeleton(pred), skeleton(expected)
        faults = mask_faults(pred, expected, lines)
        breaks += len(faults.breaks)
        merges += len(faults.merges)
        precision = (lines[0] & expected).sum() / max(lines[0].sum(), 1)
        sensitivity = (lines[1] & pred).sum() / lines[1].sum()
        scores.append(2 * precision * sensitivity / max(precision + sensitivity, 1e-9))
    return breaks, merges, float(np.mean(scores))


def _strays(label: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Voxels of vessel in a wrong class, of background taken for vessel, of vessel lost; components too many."""
    wrong = (label != reference) & (label > 0) & (reference > 0)
    around = np.ones((3,) * label.ndim)
    extra = sum(
        ndimage.label(label == index, around)[1] - ndimage.label(reference == index, around)[1]
        for index in np.unique(label[label > 0])
    )
    counts = (wrong, (label > 0) & (reference == 0), (label == 0) & (reference > 0))
    return np.array([*(np.count_nonzero(count) for count in counts), extra])

"""Published tubed skeleton against ours: time, what is lost on real label maps, and a picture of it."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from monai.utils import optional_import
from scipy import ndimage
from skimage.morphology import dilation, skeletonize

from .label_maps import read_label_map
from .skeletons import skeleton, tubed_skeleton

__all__ = ["curved_tubes", "lost_components", "published", "published_against_ours", "skeleton_speed"]


def published(label: np.ndarray) -> np.ndarray:
    """The target as the paper's code makes it: thin all that is above 0, dilate twice by a cross, times the label."""
    return dilation(dilation(skeletonize(label > 0).astype(label.dtype))) * label


def curved_tubes(shape: Sequence[int], count: int, seed: int = 0) -> np.ndarray:
    """Draw tubes of 2-6 voxels in diameter along cubic curves through a volume.

    Args:
        shape: (H, W, D).
        count: number of tubes; they may cross.
        seed: another seed, other tubes.

    Returns:
        Label (H, W, D), int16, classes 1 to at most 13.
    """
    generator = np.random.default_rng(seed)
    label = np.zeros(shape, np.int16)
    along = np.linspace(0, 1, 4 * max(shape))[:, np.newaxis]
    weights = np.hstack([(1 - along) ** 3, 3 * (1 - along) ** 2 * along, 3 * (1 - along) * along**2, along**3])
    near = np.argwhere(np.ones((7, 7, 7), bool)) - 3
    for tube in range(count):
        centres = weights @ (generator.random((4, 3)) * shape)
        radius = generator.uniform(1, 3)
        voxels = (np.rint(centres).astype(int)[:, np.newaxis] + near).reshape(-1, 3)
        inside = ((voxels - np.repeat(centres, len(near), axis=0)) ** 2).sum(axis=1) <= radius**2
        inside &= ((voxels >= 0) & (voxels < shape)).all(axis=1)
        label[tuple(voxels[inside].T)] = tube % 13 + 1
    return label


def skeleton_speed(output_dir: str | Path, repeats: int = 7) -> list[dict[str, Any]]:
    """Time the published transform and ours in turns, and write ``speed.csv`` and ``speed.md``.

    The last rows are two curves: the same tubes in ever larger volumes, and ever more tubes in one volume.

    Args:
        output_dir: folder to write to.
        repeats: runs of each; the median counts.

    Returns:
        One dictionary a row: what, shape, tubes, foreground (voxels), published_ms, ours_ms, ratio, equal. ``equal``:
        the two outputs are the same wherever the published one has lost nothing.
    """
    tubed_skeleton(curved_tubes((16, 16, 16), 1))  # tables are filled once a process
    rows = []
    for what, tubes, label in _speed_cases():
        seconds: dict[Callable, list[float]] = {published: [], tubed_skeleton: []}
        for _ in range(repeats):
            for function, times in seconds.items():
                begin = time.perf_counter()
                function(label)
                times.append(time.perf_counter() - begin)
        theirs, ours = median(seconds[published]), median(seconds[tubed_skeleton])
        rows.append(
            {
                "what": what,
                "shape": "x".join(map(str, label.shape)),
                "tubes": tubes,
                "foreground": int((label > 0).sum()),
                "published_ms": round(theirs * 1000, 1),
                "ours_ms": round(ours * 1000, 1),
                "ratio": round(theirs / ours, 1),
                "equal": _equal_where_nothing_was_lost(label),
            }
        )
    _write(rows, Path(output_dir) / "speed")
    return rows


def _speed_cases() -> Iterator[tuple[str, int, np.ndarray]]:
    yield "patch", 14, curved_tubes((160, 192, 80), 14)
    yield "large patch", 30, curved_tubes((320, 320, 160), 30)
    same = curved_tubes((96, 96, 96), 6)
    for size in (96, 160, 224, 288, 352):
        yield "same tubes, more volume", 6, np.pad(same, [(0, size - 96)] * 3)
    for count in (1, 4, 16, 64):
        yield "same volume, more tubes", count, curved_tubes((256, 256, 128), count)


def _equal_where_nothing_was_lost(label: np.ndarray) -> bool:
    before = published(label)
    changed = tubed_skeleton(label) != before
    robbed = np.setdiff1d(label, before)
    bare, _ = _bare(label > 0, skeletonize(label > 0))
    return bool((bare | np.isin(label, robbed))[changed].all())


def lost_components(
    label_dirs: Sequence[str | Path],
    output_dir: str | Path,
    patch_size: Sequence[int] = (160, 192, 80),
    patches: int = 8,
) -> list[dict[str, Any]]:
    """Count what the published target loses on real label maps, and ours; write ``lost.csv`` and ``lost.md``.

    Counted on the whole maps and on patches around voxels of the foreground, as a network sees them.

    Args:
        label_dirs: folders of label maps.
        output_dir: folder to write to.
        patch_size: of a patch, in voxels.
        patches: patches a map.

    Returns:
        One dictionary a folder and kind: maps, voxels, components, how many of these have no skeleton before and now;
        how many that thinning kept have voxels more than 2 (inradius + 1) from their skeleton, and how many voxels
        these are, before and now alike; classes, and how many of these have no tube before and now.

    Raises:
        FileNotFoundError: when a folder holds no label map.
    """
    rows = []
    for folder in map(Path, label_dirs):
        paths = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no label maps.")
        counts = {"whole maps": np.zeros(10, int), f"patches {'x'.join(map(str, patch_size))}": np.zeros(10, int)}
        for number, path in enumerate(paths):
            label, _ = read_label_map(path)
            label = label.astype(np.int16)
            whole, cut = counts
            counts[whole] += _losses(label)
            for patch in _patches(label, patch_size, patches, number):
                counts[cut] += _losses(patch)
        names = ["maps", "voxels", "components", "lost_published", "lost_ours", "bare_in_part", "bare_voxels"]
        names += ["classes", "classes_lost_published", "classes_lost_ours"]
        labels = f"{folder.parent.name}/{folder.name}" if folder.name == "labels" else folder.name
        rows += [{"labels": labels, "kind": kind, **dict(zip(names, row.tolist()))} for kind, row in counts.items()]
    _write(rows, Path(output_dir) / "lost")
    return rows


def _patches(label: np.ndarray, size: Sequence[int], count: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    foreground = np.argwhere(label)
    for centre in foreground[generator.integers(0, len(foreground), count)]:
        start = [max(0, min(at - one // 2, full - one)) for at, one, full in zip(centre, size, label.shape)]
        yield label[tuple(slice(first, first + one) for first, one in zip(start, size))]


def _losses(label: np.ndarray) -> np.ndarray:
    mask = label > 0
    thin = skeletonize(mask)
    _, lost = _bare(mask, thin)
    _, lost_now = _bare(mask, skeleton(mask))
    classes = set(np.unique(label)) - {0}
    without = [len(classes - set(np.unique(tube))) for tube in (published(label), tubed_skeleton(label))]
    count = ndimage.label(mask, np.ones((3,) * mask.ndim))[1]
    return np.array([1, mask.sum(), count, lost, lost_now, *_bare_in_part(mask, thin), len(classes), *without])


def _bare(mask: np.ndarray, thin: np.ndarray) -> tuple[np.ndarray, int]:
    """Voxels, and number, of the components that hold nothing of ``thin``."""
    numbered, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
    has = np.bincount(numbered[thin], minlength=count + 1) > 0
    has[0] = True
    return ~has[numbered], int((~has).sum())


def _bare_in_part(mask: np.ndarray, thin: np.ndarray) -> tuple[int, int]:
    """Components of which thinning kept something, but not near all of it, and the voxels far from what it kept."""
    numbered, _ = ndimage.label(mask, np.ones((3,) * mask.ndim))
    components = voxels = 0
    for number, box in enumerate(ndimage.find_objects(numbered), start=1):
        inside = numbered[box] == number
        line = thin[box] & inside
        if line.any():
            limit = 2 * (ndimage.distance_transform_edt(np.pad(inside, 1)).max() + 1)
            far = int((ndimage.distance_transform_edt(~line)[inside] > limit).sum())
            components, voxels = components + (far > 0), voxels + far
    return components, voxels


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(row.values() for row in rows)]
    path.with_suffix(".md").write_text("".join(f"| {' | '.join(map(str, line))} |\n" for line in lines))


def published_against_ours(path: str | Path) -> None:
    """Draw bars, a blob, a canal in a jaw and a vessel amid ignored voxels with the published tube and with ours.

    Args:
        path: PNG to write.

    Raises:
        ImportError: when matplotlib is not installed.
    """
    figures, installed = optional_import("matplotlib.figure")
    if not installed:
        raise ImportError("pictures need matplotlib: pip install monai_skelrec[report].")
    bar = np.zeros((24, 60, 24), np.int16)
    bar[10:14, 6:54, 10:14] = 1
    bar[2:8, 20:40, 2:8] = 1
    blob = _deleted_blob()
    jaw = np.zeros((40, 80, 40), np.int16)
    jaw[4:36, 4:76, 4:36] = 1
    for column in range(10, 70):
        jaw[_ball(jaw.shape, (14 + column / 10, column, 14), 3)] = 2
    ignore = np.zeros((40, 80, 24), np.int16)
    for along in np.arange(6, 74, 0.5):
        ignore[_ball(ignore.shape, (20 + 10 * np.sin(along / 12), along, 12), 2.5)] = 1
    ignore[:, 40:][ignore[:, 40:] == 0] = 2
    cases = [
        ("bars of even width", bar, 1, published(bar), tubed_skeleton(bar)),
        ("a small blob", blob, 1, published(blob), tubed_skeleton(blob)),
        ("a canal in a jaw", jaw, 2, published(jaw), tubed_skeleton(jaw, groups="each")),
        ("ignored around one half", ignore, 1, published(ignore), tubed_skeleton(ignore, ignore_index=2)),
    ]
    figure = figures.Figure(figsize=(11, 5.2), layout="constrained")
    for column, (title, label, value, before, now) in enumerate(cases):
        for row, (name, tube) in enumerate([("label", None), ("published", before), ("ours", now)]):
            axes = figure.add_subplot(3, 4, 4 * row + column + 1)
            shades = np.full((*label.max(axis=2).shape, 3), 255, np.uint8)
            shades[(label > 0).any(axis=2)] = (235, 235, 235)
            shades[(label == value).any(axis=2)] = (150, 175, 205)
            if tube is not None:
                shades[(tube == value).any(axis=2)] = (214, 74, 40)
            axes.imshow(shades, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(title, fontsize=11)
            if column == 0:
                axes.set_ylabel(name, fontsize=11)
            if tube is not None:
                share = (tube == value).sum() / (label == value).sum()
                axes.set_xlabel(f"tube: {100 * share:.0f} % of the voxels", fontsize=9)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _ball(shape: Sequence[int], centre: Sequence[float], radius: float) -> np.ndarray:
    offsets = np.indices(shape) - np.reshape(centre, (-1, *[1] * len(shape)))
    return (offsets**2).sum(axis=0) <= radius**2


def _deleted_blob() -> np.ndarray:
    generator = np.random.default_rng(0)
    while True:
        smooth = ndimage.gaussian_filter(generator.random((12, 20, 12)), 1.2)
        numbered, count = ndimage.label(smooth > np.quantile(smooth, 0.85), np.ones((3, 3, 3)))
        bare, _ = _bare(numbered > 0, skeletonize(numbered > 0))
        for number in range(1, count + 1):
            if bare[numbered == number].all() and (numbered == number).sum() >= 25:
                return (numbered == number).astype(np.int16)

"""The embedded sample data: seeded 3D scans of tubes whose answer is known, written as ordinary data sets.

Two anatomies, drawn as curves with a radius: a Circle of Willis with TopCoW's 13 classes, thin communicating arteries
and its usual variants, in CTA and MRA contrast; and two nerve canals inside a lower jaw, in CBCT contrast. Any other
label map can be rendered too. Partial volume, blur, noise, a bias field and short drops of signal along thin vessels
make a network that is trained with Dice and cross-entropy alone lose connections.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from monai.utils import optional_import
from scipy import ndimage
from tqdm import tqdm

from .tubes import draw, one_piece_each, rotation

__all__ = ["CONTRASTS", "Contrast", "circle_of_willis", "jaw", "render", "write_phantoms"]

itk, _ = optional_import("itk")


@dataclass(frozen=True)
class Contrast:
    """How bright things are in one kind of scan, in its own unit (HU for CTA and CBCT, arbitrary for MRA)."""

    tissue: float  # mean of what is no label
    texture: float  # standard deviation of its structure, a few voxels in size
    labels: float  # mean of a label that ``values`` does not name
    noise: float  # standard deviation from voxel to voxel
    bias: float  # largest relative deviation of the slowly varying gain
    drop: float  # share of the signal that is lost where a thin vessel fades
    blur: float = 0.6  # standard deviation of the point spread, voxels
    clutter: float = 0.0  # brightness of unlabelled tubes and blobs (veins, skull base)
    values: Mapping[int, float] = field(default_factory=dict)  # mean by label value


CONTRASTS: dict[str, Contrast] = {
    "ct": Contrast(tissue=40, texture=25, labels=290, noise=28, bias=0.0, drop=0.7, blur=0.7, clutter=260),
    "mr": Contrast(tissue=120, texture=35, labels=420, noise=32, bias=0.25, drop=0.7, clutter=300),
    "cbct": Contrast(tissue=60, texture=60, labels=800, noise=90, bias=0.1, drop=0.7, values={1: 850, 3: 350, 4: 350}),
}


# --- Circle of Willis ------------------------------------------------------------------------------------------------
# millimetres from the centre: x to the patient's right, y to the front, z up; the left side is the mirror image
_BA = [(0, -15, -16), (0.5, -12, -9), (0, -9, 0)]
_PCA = [(0, -9, 0), (4, -7.6, 0.8), (7, -8.5, 1.2), (11, -15, 2), (11, -24, 4)]
_ICA = [(9, -1, -17), (10.5, 3, -11), (8.5, 5, -6), (7.5, 1.5, -2.5), (8.5, 3, 1.5)]
_MCA = [(8.5, 3, 1.5), (14, 5, 0.8), (19, 3.5, 2.5), (25, 1, 6)]
_ACA = [(8.5, 3, 1.5), (5.8, 8, 2.5), (3.4, 10.5, 3.5), (2.8, 13.5, 8), (2.2, 11, 16)]
_PCOM = [(7.7, 1.7, -2.3), (7.6, -3, -0.6), (7, -8.5, 1.2)]
_ACOM = [(3.4, 10.5, 3.5), (0, 11, 3.7), (-3.4, 10.5, 3.5)]
_THIRD_A2 = [(0, 12.2, 4.4), (0.2, 15, 8), (0.3, 15, 15)]  # beside the Acom: in its middle it would cut it in two


def _left(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    return [(-x, y, z) for x, y, z in points]


# label value on disk -> (control points, radius at the start and at the end in mm)
_ARTERIES: dict[int, tuple[Sequence[tuple[float, float, float]], float, float]] = {
    1: (_BA, 1.7, 1.6),
    2: (_PCA, 1.3, 1.1),
    3: (_left(_PCA), 1.3, 1.1),
    4: (_ICA, 2.2, 1.9),
    5: (_MCA, 1.6, 1.2),
    6: (_left(_ICA), 2.2, 1.9),
    7: (_left(_MCA), 1.6, 1.2),
    8: (_PCOM, 0.85, 0.85),
    9: (_left(_PCOM), 0.85, 0.85),
    10: (_ACOM, 0.9, 0.9),
    11: (_ACA, 1.2, 1.0),
    12: (_left(_ACA), 1.2, 1.0),
    15: (_THIRD_A2, 0.85, 0.8),
}
# share of people without the right Pcom, the left Pcom, the Acom, the third A2; the variants that TopCoW scores
# (a third A2 is rarer in life: with a handful of phantoms a class seen once cannot be learned)
_ABSENT = {8: 0.25, 9: 0.25, 10: 0.15, 15: 0.5}


def circle_of_willis(seed: int, shape: Sequence[int] = (60, 60, 40), spacing: float = 1.0) -> np.ndarray:
    """Draw the arteries of one person.

    Args:
        seed: of the anatomy: size, tilt, course of every artery, which of them are absent.
        shape: voxels, axes to the right, to the front and up (RAS).
        spacing: edge of a voxel in mm.

    Returns:
        TopCoW's label values (0-12 and 15), uint8, of ``shape``. Each artery is one 26-connected component wherever
        it lies inside the volume.
    """
    rng = np.random.default_rng([seed, 1])
    absent = {value for value, share in _ABSENT.items() if rng.random() < share}
    if 10 in absent:  # the third A2 leaves the Acom
        absent.add(15)
    # the same point of two arteries is their joint: it moves once, so that they stay joined
    joints: dict[tuple[float, ...], np.ndarray] = {}
    scale, tilt, shift = rng.uniform(0.92, 1.08), rng.normal(0, np.deg2rad(5), 3), rng.normal(0, 1.0, 3)
    turn = rotation(tilt)
    centre = (np.asarray(shape) - 1) / 2 * spacing

    tubes = {}
    for value, (points, start, end) in _ARTERIES.items():
        moved = [joints.setdefault(tuple(p), np.asarray(p) + rng.normal(0, 0.6, 3) * (abs(p[0]) > 0.1)) for p in points]
        radius_scale = rng.uniform(0.9, 1.1)
        if value not in absent:
            tubes[value] = (
                np.asarray(moved) @ turn.T * scale + shift + centre,
                np.asarray([start, end]) * radius_scale,
            )
    return one_piece_each(draw(tubes, tuple(shape), spacing))


# --- jaw -------------------------------------------------------------------------------------------------------------
_JAW, _LEFT_CANAL, _RIGHT_CANAL = 1, 3, 4  # ToothFairy 2's label values


def jaw(seed: int, shape: Sequence[int] = (80, 64, 48), spacing: float = 1.0) -> np.ndarray:
    """Draw a lower jaw with a nerve canal in either half.

    Args:
        seed: of the anatomy.
        shape: voxels, axes to the right, to the front and up (RAS).
        spacing: edge of a voxel in mm.

    Returns:
        ToothFairy 2's label values: 1 lower jawbone, 3 left canal, 4 right canal; uint8, of ``shape``.
    """
    rng = np.random.default_rng([seed, 2])
    centre = (np.asarray(shape) - 1) / 2 * spacing
    half_width, depth = rng.uniform(25, 29), rng.uniform(36, 42)
    turn, shift = rotation(rng.normal(0, np.deg2rad(4), 3)), rng.normal(0, 1.2, 3)

    def place(points: np.ndarray) -> np.ndarray:
        return points @ turn.T + shift + centre

    along = np.linspace(-1, 1, 13)
    # a parabola, and the branches that rise behind
    rise = np.clip(np.abs(along) - 0.72, 0, None) * 42
    bone = np.stack([half_width * along, depth * (0.5 - along**2) - 2, rise - 6], axis=1)
    body = {_JAW: (place(bone), np.asarray([5.0, 5.0]))}
    # the body of the jaw is taller than wide: the same arch once more, above
    upper = {_JAW: (place(bone + np.asarray([0, 0, 5.5])), np.asarray([4.2, 4.2]))}
    label = np.maximum(draw(body, tuple(shape), spacing), draw(upper, tuple(shape), spacing))

    canals = {}
    for value, side in ((_LEFT_CANAL, -1), (_RIGHT_CANAL, 1)):
        t = np.linspace(0.97, 0.38, 7)  # from the branch that rises to the mental foramen
        course = np.stack(
            [side * half_width * t, depth * (0.5 - t**2) - 2, np.clip(t - 0.72, 0, None) * 42 - 6], axis=1
        )
        course += rng.normal(0, 0.6, course.shape)
        course[-1] += np.asarray([side * 2.2, 1.5, 2.0])
        canals[value] = (place(course), np.asarray([1.3, 1.0]) * rng.uniform(0.9, 1.1))
    drawn = draw(canals, tuple(shape), spacing)
    return np.where(drawn > 0, drawn, label)


# --- label map -> image ----------------------------------------------------------------------------------------------


def render(
    label: np.ndarray,
    seed: int,
    modality: str = "ct",
    visible: np.ndarray | None = None,
    thin_mm: float = 1.1,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> np.ndarray:
    """Make an image in which a label map would be the right answer.

    Args:
        label: label values, shape (W, H, D), 0 background.
        seed: of texture, noise, gain, clutter and drops.
        modality: a key of :py:data:`CONTRASTS`.
        visible: what is to be seen, where this is more than ``label`` (other arteries, veins); default ``label``.
        thin_mm: vessels of less than this radius may fade.
        spacing: edges of a voxel in mm.

    Returns:
        int16 image of the shape of ``label``.

    Raises:
        ValueError: when ``label`` is not 3D, ``visible`` has another shape, or the modality is unknown.
    """
    if modality not in CONTRASTS:
        raise ValueError(f"modality must be one of {', '.join(CONTRASTS)}, got {modality!r}.")
    visible = label if visible is None else visible
    if label.ndim != 3 or visible.shape != label.shape:
        raise ValueError(f"label and visible must be 3D and of one shape, got {label.shape} and {visible.shape}.")
    contrast, rng = CONTRASTS[modality], np.random.default_rng([seed, 3, sorted(CONTRASTS).index(modality)])

    image = contrast.tissue + contrast.texture * _smooth_noise(rng, label.shape, sigma=2.0)
    if contrast.clutter:
        _add_clutter(image, rng, contrast, away_from=visible > 0)
    present = np.unique(visible[visible > 0])
    for value in present:
        mean = contrast.values.get(int(value), contrast.labels * rng.uniform(0.85, 1.1))
        image[visible == value] = mean
    if _JAW in contrast.values:
        _texture_bone(image, rng, visible, contrast)
    drops = _drops(visible, rng, contrast, thin_mm=thin_mm, spacing=spacing)
    image += drops * (contrast.tissue - image if not contrast.values else contrast.values[_JAW] - image)

    image = ndimage.gaussian_filter(image, contrast.blur)
    if contrast.bias:
        image *= 1 + contrast.bias * np.clip(_smooth_noise(rng, label.shape, sigma=min(label.shape) / 4), -1, 1)
    image += rng.normal(0, contrast.noise, label.shape)
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


def _drops(
    visible: np.ndarray, rng: np.random.Generator, contrast: Contrast, *, thin_mm: float, spacing: Sequence[float]
) -> np.ndarray:
    """Share of the signal that is lost, by voxel: short stretches of thin vessels fade into what surrounds them."""
    lost = np.zeros(visible.shape)
    tube = visible > 0 if not contrast.values else np.isin(visible, [_LEFT_CANAL, _RIGHT_CANAL])
    radius = ndimage.distance_transform_edt(tube, sampling=spacing)
    # a voxel of the middle of a thin vessel: as far inside as its neighbours, and not far inside
    middle = np.argwhere(tube & (radius >= ndimage.maximum_filter(radius, 3) - 1e-6) & (radius <= thin_mm))
    if len(middle) == 0:
        return lost
    for centre in middle[rng.choice(len(middle), size=min(len(middle), 1 + len(middle) // 40), replace=False)]:
        window = tuple(slice(max(c - 3, 0), min(c + 4, n)) for c, n in zip(centre, visible.shape))
        grid = np.moveaxis(np.mgrid[window], 0, -1) - centre
        lost[window] = np.maximum(lost[window], contrast.drop * np.exp(-((grid**2).sum(-1)) / (2 * 1.2**2)))
    return lost * tube


def _add_clutter(image: np.ndarray, rng: np.random.Generator, contrast: Contrast, *, away_from: np.ndarray) -> None:
    """Unlabelled bright things: veins that wander through the volume, pieces of bone at the skull base."""
    shape = np.asarray(image.shape)
    tubes = {}
    for number in range(3):
        start, end = rng.uniform(0, 1, 3) * (shape - 1), rng.uniform(0, 1, 3) * (shape - 1)
        axis = rng.integers(3)
        start[axis], end[axis] = 0, shape[axis] - 1
        bend = (start + end) / 2 + rng.normal(0, 6, 3)
        tubes[number + 1] = (np.stack([start, bend, end]), np.asarray([1.0, 1.4]))
    clutter = draw(tubes, image.shape, 1.0) > 0
    for _ in range(3):
        centre = rng.uniform(0, 1, 3) * (shape - 1) * np.asarray([1, 1, 0.3])
        radii = rng.uniform(2.5, 5.0, 3)
        window = tuple(slice(max(int(c - r), 0), min(int(c + r) + 2, n)) for c, r, n in zip(centre, radii, image.shape))
        grid = np.moveaxis(np.mgrid[window], 0, -1)
        clutter[window] |= (((grid - centre) / radii) ** 2).sum(-1) < 1
    # what touches a vessel would be part of it: nobody could tell
    clutter &= ~ndimage.binary_dilation(away_from, iterations=2)
    image[clutter] = contrast.clutter


def _texture_bone(image: np.ndarray, rng: np.random.Generator, visible: np.ndarray, contrast: Contrast) -> None:
    """Cortical bone outside and around a canal, darker and porous bone inside."""
    bone, canal = visible == _JAW, np.isin(visible, [_LEFT_CANAL, _RIGHT_CANAL])
    inside = ndimage.binary_erosion(bone | canal, iterations=2) & bone
    image[bone] = 1.25 * contrast.values[_JAW]
    porous = contrast.values[_JAW] * (0.7 + 0.25 * _smooth_noise(rng, image.shape, sigma=1.0))
    image[inside] = porous[inside]
    wall = ndimage.binary_dilation(canal) & inside
    image[wall] = contrast.values[_JAW] * 0.9


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], *, sigma: float) -> np.ndarray:
    """Gaussian noise of mean 0, standard deviation 1 and a correlation length of ``sigma`` voxels."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()


# --- data sets on disk -----------------------------------------------------------------------------------------------


def write_phantoms(output_dir: str, layout: str = "topcow", training: int = 12, test: int = 4, seed: int = 0) -> None:
    """Write ``output_dir/train`` and ``output_dir/test``, each a data set in the layout of the real one.

    Layout ``"topcow"`` gets a Circle of Willis, every person in CTA and in MRA; ``"toothfairy2"`` gets a jaw. The same
    arguments give the same voxels.

    Args:
        output_dir: folder, made when it is not there. Phantoms of an earlier call go, so that nobody who was in
            ``train`` is left in ``test``.
        layout: ``"topcow"`` or ``"toothfairy2"``, see :py:func:`monai_skelrec.list_cases`.
        training: number of people in ``train``.
        test: number of people in ``test``; none of them is in ``train``.
        seed: of the first person; every person has a seed of their own.

    Raises:
        FileExistsError: when ``train`` or ``test`` is there and holds something else.
        ValueError: when there are no phantoms of the layout or a number of people is below 1.
    """
    if layout not in _FOLDERS:
        raise ValueError(f"there are phantoms of the layouts {' and '.join(_FOLDERS)}, got {layout!r}.")
    if training < 1 or test < 1:
        raise ValueError(f"training and test must be at least 1, got {training} and {test}.")
    for folder in ("train", "test"):
        _remove_phantoms(Path(output_dir) / folder, _FOLDERS[layout])
    folders = ["train"] * training + ["test"] * test
    for number, folder in enumerate(tqdm(folders, desc=f"{layout} phantoms", unit="person"), start=1):
        root = Path(output_dir) / folder
        person = 1000 * seed + number
        if layout == "topcow":
            label = circle_of_willis(person)
            for modality in ("ct", "mr"):
                image = render(label, person, modality)
                _write_nifti(root / "imagesTr" / f"topcow_{modality}_{number:03d}_0000.nii.gz", image)
                _write_nifti(root / "cow_seg_labelsTr" / f"topcow_{modality}_{number:03d}.nii.gz", label)
        else:
            label = jaw(person)
            image = render(label, person, "cbct")
            _write_mha(root / "imagesTr" / f"ToothFairy2F_{number:03d}_0000.mha", image)
            _write_mha(root / "labelsTr" / f"ToothFairy2F_{number:03d}.mha", label)


_FOLDERS = {"topcow": ("imagesTr", "cow_seg_labelsTr"), "toothfairy2": ("imagesTr", "labelsTr")}


def _remove_phantoms(root: Path, folders: Sequence[str]) -> None:
    found = [path for path in root.rglob("*") if path.is_file()] if root.exists() else []
    names = re.compile(r"(topcow_(ct|mr)|ToothFairy2F)_\d{3}(_0000)?\.(nii\.gz|mha)")
    other = [path for path in found if path.parent.name not in folders or not names.fullmatch(path.name)]
    if other:
        raise FileExistsError(f"{str(root)!r} holds other files, such as {other[0].name}; take another folder.")
    for path in found:
        path.unlink()


def _write_nifti(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def _write_mha(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # ITK holds arrays as z, y, x and counts x and y towards left and posterior
    picture = itk.image_from_array(np.ascontiguousarray(array[::-1, ::-1].T))
    itk.imwrite(picture, str(path), compression=True)

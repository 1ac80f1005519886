"""Step "probabilities -> label map", what may follow the argmax: each step is a knob, and all are off by default.

The order is fixed, and is the one that loses least: fragments are joined before small ones are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_numpy, ensure_tuple_rep
from scipy import ndimage

from .contacts import CONTACTS, allowed_contacts, fix_contacts
from .grids import voxel_size
from .reconnections import reconnect

__all__ = [
    "PostProcessLabelMapD",
    "PostProcessLabelMapDict",
    "PostProcessLabelMapd",
    "drop_islands",
    "keep_largest",
    "postprocess",
]


def postprocess(
    label: np.ndarray,
    class_names: Sequence[str],
    probabilities: np.ndarray | None = None,
    spacing: Sequence[float] | None = None,
    *,
    max_gap: float | None = None,
    min_probability: float = 0.15,
    contacts: str | Iterable[Sequence[str]] | None = None,
    isolated: str = "keep",
    min_volume: float | None = None,
    largest: int | Mapping[str, int] | None = None,
) -> np.ndarray:
    """Repair a label map: join fragments, fix wrong neighbours, drop islands, keep the largest components.

    Args:
        label: class indices, shape (H, W) or (H, W, D).
        class_names: background first.
        probabilities: of each class, shape (C, H, W[, D]); only ``max_gap`` needs them.
        spacing: edges of a voxel in mm; None for 1.
        max_gap: mm; the longest gap that is bridged, see :py:func:`monai_skelrec.reconnections.reconnect`. None: none.
        min_probability: the least mean probability of a class along a gap that is bridged.
        contacts: classes that may touch, as pairs of names or the name of a table in
            :py:data:`monai_skelrec.contacts.CONTACTS`; see :py:func:`monai_skelrec.contacts.fix_contacts`. None: any.
        isolated: ``"keep"`` or ``"drop"`` fragments that touch no class while another one of theirs does.
        min_volume: mm3; smaller components are dropped, see :py:func:`drop_islands`. None: none.
        largest: number of components that are kept of each class, or of each class named, see :py:func:`keep_largest`.
            None: all.

    Returns:
        Array of the shape and dtype of ``label``.

    Raises:
        ValueError: when ``max_gap`` is given without probabilities, or a name is unknown.
    """
    out = label
    if max_gap is not None:
        if probabilities is None:
            raise ValueError("max_gap needs the probabilities of the classes.")
        out, _ = reconnect(out, probabilities, max_gap=max_gap, min_probability=min_probability, spacing=spacing)
    if contacts is not None:
        if isinstance(contacts, str) and contacts not in CONTACTS:
            raise ValueError(f"there are tables of contacts of {', '.join(CONTACTS)}, got {contacts!r}.")
        pairs = CONTACTS[contacts] if isinstance(contacts, str) else contacts
        out = fix_contacts(out, allowed_contacts(pairs, class_names), class_names, isolated=isolated)
    if min_volume is not None:
        out = drop_islands(out, min_volume, spacing)
    if largest is not None:
        counts: Mapping[int, int]
        if isinstance(largest, Mapping):
            unknown = sorted(set(largest) - set(class_names))
            if unknown:
                raise ValueError(f"{unknown[0]!r} is none of the classes {', '.join(class_names)}.")
            counts = {class_names.index(name): count for name, count in largest.items()}
        else:
            counts = {index: largest for index in range(1, len(class_names))}
        out = keep_largest(out, counts)
    return out.copy() if out is label else out


def keep_largest(label: np.ndarray, counts: Mapping[int, int]) -> np.ndarray:
    """Keep the largest components of each class; the others become background.

    Args:
        label: class indices, shape (H, W) or (H, W, D).
        counts: number of components (26 neighbours, 8 in 2D) that are kept, by class index; a class that is not in it
            keeps all. Of components of one size, the first in memory stay.

    Raises:
        ValueError: when a number is below 1.
    """
    if any(count < 1 for count in counts.values()):
        raise ValueError(f"at least 1 component must be kept, got {min(counts.values())}.")

    def stays(index: int, sizes: np.ndarray) -> np.ndarray:
        order = np.argsort(-sizes, kind="stable")
        kept = np.zeros(sizes.size, bool)
        kept[order[: counts.get(index, sizes.size)]] = True
        return kept

    return _choose(label, stays)


def drop_islands(label: np.ndarray, min_volume: float, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Turn components of a class that are smaller than a volume into background, but never the largest of a class.

    Args:
        label: class indices, shape (H, W) or (H, W, D).
        min_volume: in the cubed unit of ``spacing`` (squared in 2D); a component of just this volume stays.
        spacing: edges of a voxel; None for 1.

    Raises:
        ValueError: when ``min_volume`` is negative.
    """
    if min_volume < 0:
        raise ValueError(f"min_volume must be at least 0, got {min_volume}.")
    voxel = 1.0 if spacing is None else float(np.prod(spacing))

    def stays(index: int, sizes: np.ndarray) -> np.ndarray:
        # rounding must not decide about a component of just that volume
        return (sizes * voxel >= min_volume * (1 - 1e-9)) | (sizes == sizes.max())

    return _choose(label, stays)


def _choose(label: np.ndarray, stays: Callable[[int, np.ndarray], np.ndarray]) -> np.ndarray:
    out = label.copy()
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        if box is not None:
            components, _ = ndimage.label(label[box] == index, np.ones((3,) * label.ndim))
            kept = stays(index, np.bincount(components.ravel())[1:])
            out[box][np.concatenate([[False], ~kept])[components]] = 0
    return out


class PostProcessLabelMapd(MapTransform):
    """Dictionary-based wrapper of :py:func:`postprocess`.

    Place it after ``AsDiscreted(argmax=True)`` on class indices, before label values are mapped back; the spacing is
    that of the MetaTensor. Keep the probabilities under another key (``CopyItemsd``) when ``max_gap`` is set.

    Args:
        keys: label maps of class indices, shape (1, H, W[, D]).
        class_names: background first.
        probability_keys: probabilities of each label map, shape (C, H, W[, D]); None without ``max_gap``.
        max_gap, min_probability, contacts, isolated, min_volume, largest: see :py:func:`postprocess`.
        allow_missing_keys: don't raise if a key is missing.
    """

    backend = [TransformBackends.NUMPY]

    def __init__(
        self,
        keys: KeysCollection,
        class_names: Sequence[str],
        probability_keys: KeysCollection | None = None,
        max_gap: float | None = None,
        min_probability: float = 0.15,
        contacts: str | Iterable[Sequence[str]] | None = None,
        isolated: str = "keep",
        min_volume: float | None = None,
        largest: int | Mapping[str, int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.class_names = tuple(class_names)
        self.probability_keys = ensure_tuple_rep(probability_keys, len(self.keys))
        self.max_gap = max_gap
        self.min_probability = min_probability
        self.contacts = contacts
        self.isolated = isolated
        self.min_volume = min_volume
        self.largest = largest

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        d = dict(data)
        for key, probability_key in self.key_iterator(d, self.probability_keys):
            stored = convert_to_numpy(d[key])
            if stored.shape[0] != 1:
                raise ValueError(f"{key!r} must be one channel of class indices, got shape {tuple(stored.shape)}.")
            affine = getattr(d[key], "affine", None)
            repaired = postprocess(
                stored[0].astype(np.int32),
                self.class_names,
                None if probability_key is None else convert_to_numpy(d[probability_key]),
                None if affine is None else voxel_size(convert_to_numpy(affine))[: stored.ndim - 1],
                max_gap=self.max_gap,
                min_probability=self.min_probability,
                contacts=self.contacts,
                isolated=self.isolated,
                min_volume=self.min_volume,
                largest=self.largest,
            )
            d[key] = convert_to_dst_type(repaired[np.newaxis], d[key])[0]
        return d


PostProcessLabelMapD = PostProcessLabelMapDict = PostProcessLabelMapd

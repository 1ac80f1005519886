"""Left and right: classes that differ in the side of the body only, and what a mirror image makes of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapLabelValue, RandFlipd
from monai.utils import ensure_tuple
from monai.utils.enums import TraceKeys

__all__ = [
    "RandFlipSidesD",
    "RandFlipSidesDict",
    "RandFlipSidesd",
    "SIDE_AXIS",
    "pair_indices",
    "side_pairs",
    "swap_sides",
    "tell_sides",
]

# spatial axis from one side to the other, of a scan in RAS, and of a picture as MONAI's PILReader gives it
SIDE_AXIS = 0


def side_pairs(class_names: Sequence[str]) -> dict[int, int]:
    """Find classes whose names differ by their side only, such as R-PCA and L-PCA, or right canal and left canal.

    Args:
        class_names: background first.

    Returns:
        For the index of each class that has a partner on the other side, the partner's; both ways.

    Example:
        >>> side_pairs(["background", "BA", "R-PCA", "L-PCA", "left canal", "Right canal"])
        {2: 3, 3: 2, 4: 5, 5: 4}
    """
    other = {"r": "l", "l": "r", "right": "left", "left": "right"}
    names = [re.split(r"([\W_]+)", name.lower()) for name in class_names]
    mirrored = [[other.get(word, word) for word in name] for name in names]
    return {
        index: names.index(name)
        for index, name in enumerate(mirrored)
        if index and name != names[index] and name in names
    }


def pair_indices(
    class_names: Sequence[str], mirror_pairs: Sequence[Sequence[str]] | None, mirror_axes: Sequence[int] = (SIDE_AXIS,)
) -> dict[int, int]:
    """Find the indices of classes that change places in a mirror image.

    Args:
        class_names: background first.
        mirror_pairs: two names each; None or empty: none. A pair neither of whose classes is there belongs to another
            task, and is left out.
        mirror_axes: that are flipped. Without the one from side to side nothing changes places, and pairs that do not
            fit harm nobody.

    Returns:
        For the index of each such class the partner's; both ways.

    Raises:
        ValueError: when an entry is no pair, only one of its names is a class, one is the background, a class stands in
            two places, or no class is named at all.

    Example:
        >>> pair_indices(["background", "BA", "R-PCA", "L-PCA"], [["R-PCA", "L-PCA"], ["R-ICA", "L-ICA"]])
        {2: 3, 3: 2}
    """
    names = list(class_names)
    pairs: dict[int, int] = {}
    if SIDE_AXIS not in mirror_axes:
        return pairs
    for pair in mirror_pairs or ():
        there = [name for name in pair if name in names]
        if isinstance(pair, str) or len(pair) != 2 or len(there) == 1 or set(names[:1]) & set(there) or not names:
            raise ValueError(
                f"mirror_pairs must be pairs of classes that change places in a mirror image, got {pair}; the classes "
                f"are {', '.join(names) or 'not named'}. Name theirs, or none with --mirror_pairs '[]'."
            )
        if there:
            first, second = map(names.index, there)
            if first == second or {first, second} & pairs.keys():
                raise ValueError(
                    f"mirror_pairs must hold each class once, got {[list(each) for each in mirror_pairs or ()]}."
                )
            pairs[first], pairs[second] = second, first
    return pairs


def tell_sides(
    class_names: Sequence[str], mirror_axes: Sequence[int], mirror_pairs: Sequence[Sequence[str]] | None
) -> None:
    """Log which classes change places where scans are mirrored from side to side, and warn of those that might.

    Those are classes whose names differ by their side only, and which are no pair.

    Args:
        class_names: background first.
        mirror_axes: that are flipped.
        mirror_pairs: classes that change places along axis 0.
    """
    if SIDE_AXIS not in mirror_axes:
        return
    pairs = pair_indices(class_names, mirror_pairs)
    changing = [f"{class_names[one]} and {class_names[other]}" for one, other in pairs.items() if one < other]
    log = logging.getLogger(__name__)
    log.info(f"Mirrored from side to side; classes that change places then: {', '.join(changing) or 'none'}.")
    unpaired = [class_names[index] for index in side_pairs(class_names) if index not in pairs]
    if unpaired:
        log.warning(
            f"Scans are mirrored from side to side (mirror_axes holds {SIDE_AXIS}), where {', '.join(unpaired)} keep "
            "their names. If they are each other's mirror image, name them in mirror_pairs, or leave the axis out."
        )


def swap_sides(label: torch.Tensor, pairs: Mapping[int, int]) -> torch.Tensor:
    """Give each class of a pair the index of its partner.

    Args:
        label: class indices of any shape and dtype.
        pairs: see :py:func:`pair_indices`.

    Returns:
        A copy, of the same type; classes without a partner, and values that are no class, as they were.
    """
    dtype: Any = label.dtype  # MONAI takes PyTorch's, which its annotation leaves out
    swapped: torch.Tensor = MapLabelValue(list(pairs), list(pairs.values()), dtype=dtype)(label)
    return swapped


class RandFlipSidesd(RandFlipd):
    """MONAI's RandFlipd along the axis from one side of the body to the other, where left classes become right ones.

    In the mirror image of a head the right artery lies where left ones do. It must be called left, or the network
    learns that the two cannot be told apart. It stands where RandFlipd does: before
    :py:class:`monai_skelrec.TubedSkeletond`. Scans must lie so that the first spatial axis runs from side to side, as
    after ``Orientationd`` to RAS. It is for parts of the body that are each other's mirror image; a mirrored left
    ventricle is no right one.

    Args:
        keys: images and labels, all of which are flipped.
        label_keys: those of ``keys`` that hold class indices, whose classes change places too.
        class_names: background first.
        mirror_pairs: names of classes that change places, such as ``[["R-ICA", "L-ICA"]]``. Without any it is
            RandFlipd, with the same random numbers.
        prob: of flipping.
        allow_missing_keys: leave out keys that a sample does not have.
        lazy: see RandFlipd.

    Raises:
        ValueError: when a label key is none of ``keys``, or a pair does not fit, see :py:func:`pair_indices`.

    Example:
        >>> label = torch.tensor([[1, 0, 2]]).reshape(1, 3, 1, 1)  # right, nothing, left
        >>> flip = RandFlipSidesd("label", "label", ["background", "R-ICA", "L-ICA"], [["R-ICA", "L-ICA"]], prob=1.0)
        >>> flip({"label": label})["label"].flatten().tolist()
        [1, 0, 2]
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_keys: KeysCollection,
        class_names: Sequence[str],
        mirror_pairs: Sequence[Sequence[str]] | None,
        prob: float = 0.1,
        allow_missing_keys: bool = False,
        lazy: bool = False,
    ) -> None:
        super().__init__(keys, prob, SIDE_AXIS, allow_missing_keys, lazy)
        self.label_keys = ensure_tuple(label_keys)
        if not set(self.label_keys) <= set(self.keys):
            raise ValueError(f"label_keys must be among keys {list(self.keys)}, got {list(self.label_keys)}.")
        # pairs that do not fit harm nobody who does not flip
        self.pairs = pair_indices(class_names, mirror_pairs) if prob > 0 else {}

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """
        Args:
            data: images and labels (C, H, W[, D]) of one grid.
            lazy: see RandFlipd.

        Returns:
            The same keys; the arrays handed in are left as they were.

        Raises:
            ValueError: when a label has several channels, which are no class indices.
        """
        d = super().__call__(data, lazy)
        if self._do_transform:
            self._swap(d, [key for key in self.key_iterator(d) if key in self.label_keys])
        return d

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Flip and swap back what was flipped."""
        flipped = [
            key
            for key in self.key_iterator(dict(data))
            if key in self.label_keys and self.get_most_recent_transform(data[key])[TraceKeys.DO_TRANSFORM]
        ]
        d = super().inverse(data)
        self._swap(d, flipped)
        return d

    def _swap(self, d: dict[Hashable, Any], keys: Sequence[Hashable]) -> None:
        for key in keys if self.pairs else ():
            if len(d[key]) != 1:
                raise ValueError(f"{key} must hold class indices in one channel, got shape {tuple(d[key].shape)}.")
            d[key] = swap_sides(d[key], self.pairs)


RandFlipSidesD = RandFlipSidesDict = RandFlipSidesd

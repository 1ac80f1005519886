"""Step "probabilities -> label map", a repair: fragments of a class that touch the wrong neighbours are relabelled.

What is right says anatomy: a table of the classes that may touch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from .sides import side_pairs

__all__ = ["CONTACTS", "allowed_contacts", "fix_contacts"]

# Classes of the Circle of Willis that may touch. Beside each pair: in how many label maps by experts it did, of those
# that show both (17 of TopBrain 2025, 6 of TopCoW). Two further pairs touched in one map each, L-PCA with L-ICA and
# with L-ACA: vessels that lie side by side without being joined. No other pair ever did.
CONTACTS: dict[str, tuple[tuple[str, str], ...]] = {
    "topcow": (
        ("BA", "R-PCA"),  # 19 of 23
        ("BA", "L-PCA"),  # 23 of 23
        ("R-PCA", "R-Pcom"),  # 15 of 15
        ("L-PCA", "L-Pcom"),  # 10 of 10
        ("R-ICA", "R-MCA"),  # 21 of 21
        ("L-ICA", "L-MCA"),  # 22 of 22
        ("R-ICA", "R-Pcom"),  # 15 of 15
        ("L-ICA", "L-Pcom"),  # 10 of 10
        ("R-ICA", "R-ACA"),  # 22 of 23
        ("L-ICA", "L-ACA"),  # 17 of 22
        ("R-ACA", "Acom"),  # 20 of 20
        ("L-ACA", "Acom"),  # 20 of 20
        ("R-ACA", "L-ACA"),  # 17 of 23
        ("Acom", "3rd-A2"),  # 5 of 5
        ("R-ACA", "3rd-A2"),  # 2 of 5
        ("L-ACA", "3rd-A2"),  # 3 of 5
    )
}


def allowed_contacts(pairs: Iterable[Sequence[str]], class_names: Sequence[str]) -> dict[int, set[int]]:
    """Turn pairs of names into class indices.

    Args:
        pairs: names of two classes that may touch, such as ``CONTACTS["topcow"]``.
        class_names: background first.

    Returns:
        For each class that has a neighbour, the indices of its neighbours.

    Raises:
        ValueError: when a name is none of ``class_names``.

    Example:
        >>> allowed_contacts([("BA", "R-PCA")], ["background", "BA", "R-PCA", "L-PCA"])
        {1: {2}, 2: {1}}
    """
    index = {name: place for place, name in enumerate(class_names)}
    allowed: dict[int, set[int]] = {}
    for pair in pairs:
        unknown = [name for name in pair if name not in index]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is none of the classes {', '.join(class_names)}.")
        one, other = (index[name] for name in pair)
        allowed.setdefault(one, set()).add(other)
        allowed.setdefault(other, set()).add(one)
    return allowed


def fix_contacts(
    label: np.ndarray,
    allowed: Mapping[int, set[int]],
    class_names: Sequence[str] | None = None,
    *,
    isolated: str = "keep",
) -> np.ndarray:
    """Give fragments that touch the wrong neighbours to the class that they belong to.

    A class is judged where it is in several components (26 neighbours, 8 in 2D) of which some touch an allowed
    neighbour and others touch none. Of the others, one that touches other classes is relabelled: to the same structure
    of the other side if it touches that one or two of its allowed neighbours, else to the class that it touches most.
    One that touches nothing is background if ``isolated`` says so; behind a gap in a vessel all that follows is
    isolated.

    Args:
        label: class indices, shape (H, W) or (H, W, D).
        allowed: of :py:func:`allowed_contacts`; a class that is not in it stays as it is.
        class_names: by which left and right are told, see :py:func:`monai_skelrec.sides.side_pairs`; None: not.
        isolated: ``"keep"`` or ``"drop"``.

    Returns:
        Array of the dtype of ``label``. Fragments are judged by the label map as it came, not by each other's new
        classes.

    Raises:
        ValueError: when ``isolated`` is neither.
    """
    if isolated not in ("keep", "drop"):
        raise ValueError(f"isolated must be 'keep' or 'drop', got {isolated!r}.")
    partner = side_pairs(class_names) if class_names is not None else {}
    around = np.ones((3,) * label.ndim, bool)
    out = label.copy()
    for index, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None or index not in allowed:
            continue
        # one voxel of margin holds all that touches the class
        wide = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
        here = label[wide]
        components, count = ndimage.label(here == index, around)
        if count < 2:
            continue
        touched = [_touched(here, components == number, around) for number in range(1, count + 1)]
        anchored = [bool(allowed[index] & set(contacts)) for contacts in touched]
        if not any(anchored):
            continue
        for number, (contacts, held) in enumerate(zip(touched, anchored, strict=True), start=1):
            if held or (not contacts and isolated == "keep"):
                continue
            out[wide][components == number] = _owner(contacts, partner.get(index), allowed) if contacts else 0
    return out


def _owner(contacts: Mapping[int, int], partner: int | None, allowed: Mapping[int, set[int]]) -> int:
    """The class that a fragment is given to, which touches classes but none that it may touch."""
    if partner is not None and (partner in contacts or len(allowed.get(partner, set()) & set(contacts)) > 1):
        return partner
    return max(contacts, key=contacts.__getitem__)


def _touched(label: np.ndarray, component: np.ndarray, around: np.ndarray) -> dict[int, int]:
    """Classes beside a component, and the number of their voxels that are neighbours of it."""
    values = label[ndimage.binary_dilation(component, around) & ~component]
    classes, counts = np.unique(values[values > 0], return_counts=True)
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))

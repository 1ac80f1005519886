"""Step "label map -> picture" while a network trains: outlines of reference and prediction over the image, at once."""

from __future__ import annotations

import numpy as np
from skimage.segmentation import find_boundaries

__all__ = ["draw_outlines"]

_REFERENCE, _PREDICTION = (0, 255, 0), (255, 0, 0)


def draw_outlines(*, image: np.ndarray, reference: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Draw where prediction and reference agree and where they do not; a volume is seen along its last axis.

    A gap in a tube shows as a gap in its outline, which no single slice of the volume would show.

    Args:
        image: any unit, shape (H, W) or (H, W, D).
        reference: boolean, shape of ``image``.
        pred: boolean, shape of ``image``.

    Returns:
        RGB, uint8, shape (W, H, 3): the image's first axis to the right, its second one up. Outlines are green for the
        reference, red for the prediction, and yellow where they are one.
    """
    if image.ndim == 3:
        image, reference, pred = (volume.max(axis=2) for volume in (image, reference, pred))
    low, high = np.percentile(image, [0.5, 99.5])
    grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    # dimmed, so that the outlines stand out from bone and bright vessels
    picture = np.repeat((160 * grey).astype(np.uint8)[..., None], 3, axis=-1)
    outlines = np.zeros_like(picture)
    for mask, colour in ((reference, _REFERENCE), (pred, _PREDICTION)):
        outlines[find_boundaries(mask, mode="inner")] += np.array(colour, np.uint8)
    picture = np.where(outlines.any(axis=-1, keepdims=True), outlines, picture)
    return np.ascontiguousarray(picture.swapaxes(0, 1)[::-1])

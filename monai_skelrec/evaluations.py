"""Step "scan -> label map", what is left of it: evaluation takes up label maps of the same model, and no others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .fingerprints import sha256
from .label_maps import read_label_map
from .locks import hold_folder
from .processes import is_first, wait_for_all
from .summaries import as_written, write_json
from .workflows import FACTS, running_config

__all__ = ["cases_to_predict"]

_RECORD = "predicted_by.json"
# what a label map depends on, beside the weights and the scan
_SETTINGS = (*FACTS, "network_def", "preprocessing", "inferer", "postprocessing", "overlap", "mirror", "amp")


def cases_to_predict(
    cases: Sequence[Mapping[str, str]], predictions_dir: str | Path, output_ext: str, checkpoint: str | Path
) -> list[Mapping[str, str]]:
    """Leave out the cases that this very model has segmented already, so that an interrupted evaluation goes on.

    What made the label maps stands beside their folder, in ``predicted_by.json``: a hash of the weights, and the
    settings. A label map counts when it is newer than its scan and can be read; one that was being written when a run
    was killed is made again.

    Args:
        cases: dictionaries with ``name`` and ``image``, the path of the scan.
        predictions_dir: where the label maps go, ``<name><output_ext>``.
        output_ext: ending of their names.
        checkpoint: file of the weights.

    Returns:
        The other cases.

    Raises:
        FileExistsError: when the folder holds label maps of other weights or settings, or of nobody knows whom, or
            another command is writing it.
        RuntimeError: when it is not called from a bundle workflow.
    """
    folder, record = Path(predictions_dir), Path(predictions_dir).parent / _RECORD
    config = running_config()
    settings = {key: config[key] for key in _SETTINGS if key in config and key != "checkpoint"}
    made_by = {"weights": sha256(checkpoint), **as_written(settings)}
    hold_folder(record.parent)
    if folder.is_dir() and any(folder.iterdir()):
        _refuse_others(folder, record, made_by)
    # nobody may write before everybody has looked
    wait_for_all()
    if is_first():
        write_json(record, made_by)
    return [case for case in cases if not _is_done(folder / f"{case['name']}{output_ext}", Path(case["image"]))]


def _refuse_others(folder: Path, record: Path, made_by: Mapping[str, Any]) -> None:
    what = "of unknown origin"
    if record.is_file():
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = [key for key in {**before, **made_by} if before.get(key) != made_by.get(key)]
        if not changed:
            return
        what = f"that were made with other {', '.join(changed)}"
    raise FileExistsError(
        f"{str(folder)!r} holds label maps {what}, which would be scored with the new ones; take another --output_dir, "
        "or delete them."
    )


def _is_done(prediction: Path, image: Path) -> bool:
    if not prediction.is_file() or prediction.stat().st_mtime_ns < image.stat().st_mtime_ns:
        return False
    try:
        read_label_map(prediction)
    except ValueError:
        return False
    return True

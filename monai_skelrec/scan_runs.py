"""Step "list of scans -> folder of label maps": each scan once, whatever becomes of others, the machine or the run."""

from __future__ import annotations

import errno
import logging
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import ignite.distributed as idist
import numpy as np
import torch.distributed as dist
from tqdm import tqdm

from .files import remove_unfinished
from .fingerprints import fingerprint, sha256
from .label_files import ending_like, write_label_map
from .locks import hold_folder
from .manifests import Records, scan_state, versions, write_manifest
from .processes import is_first
from .reading import Loaded, UnusableScan
from .scans import Scan
from .segmenting import Segmenter
from .workflows import running_config

__all__ = ["Correction", "Output", "options_of_run", "require_all_segmented", "segment_scans"]

# the disk's own errors: no later scan would fare better
_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
# names of a configuration on which no label map depends: where things are, how fast, what is refused
_WITHOUT_EFFECT = (
    *("bundle_root", "dataset_dir", "output_dir", "datalist", "series", "checkpoint", "device", "buffer_device"),
    *(
        "num_workers",
        "sw_batch_size",
        "max_memory_gb",
        "initialize",
        "finalize",
        "inferring",
        "run",
        "imports",
        "found",
    ),
)
_POLL = 0.5  # seconds between two looks at what the other processes have done


class Correction(Protocol):
    """Changes a label map before it is written, such as removing islands."""

    def __call__(self, labels: np.ndarray, affine: np.ndarray, probabilities: np.ndarray | None) -> np.ndarray:
        """
        Args:
            labels: class indices (not values), shape of the scan, axes as its file has them (x, y, z; width, height).
            affine: from indices to RAS+ coordinates in mm, shape (D + 1, D + 1); of a picture the identity.
            probabilities: float16, shape (C, ...) on the same grid; None unless they were asked for.

        Returns:
            Class indices of the same shape and dtype.
        """


class Output(Protocol):
    """Writes something beside the label map, such as centrelines or a picture, and measures."""

    def __call__(
        self,
        *,
        name: str,
        labels: np.ndarray,
        affine: np.ndarray,
        probabilities: np.ndarray | None,
        output_dir: Path,
        load: Callable[[], Loaded],
    ) -> Mapping[str, Any]:
        """
        Args:
            name: of the scan; files of its own begin with it.
            labels: as :py:class:`Correction` has them, corrected.
            affine: as there.
            probabilities: as there.
            output_dir: folder of the label maps; it exists.
            load: reads the scan again, for whoever needs its intensities.

        Returns:
            Numbers and texts for the record of the scan in ``manifest.json``, under ``"numbers"``.
        """


def segment_scans(
    scans: Sequence[Scan],
    segmenter: Segmenter,
    read: Callable[[Scan], Loaded],
    output_dir: str | Path,
    *,
    label_values: Sequence[int],
    output_ext: str,
    same_format: bool = False,
    probabilities: bool = False,
    corrections: Sequence[Correction] = (),
    outputs: Sequence[Output] = (),
    checkpoint: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Segment every scan that has no label map of these weights and options yet, and write ``manifest.json``.

    A scan that cannot be segmented is recorded with the reason and the others go on;
    :py:func:`require_all_segmented` turns that into an error afterwards. Of several processes each takes its share;
    scans during which a process was killed come last, so that one that is too large does not keep the others waiting.

    Args:
        scans: see :py:func:`monai_skelrec.scans.find_scans`.
        segmenter: image -> class indices.
        read: scan -> image, such as :py:func:`monai_skelrec.reading.read_scan` with its options.
        output_dir: gets the label maps, ``manifest.json`` and what ``outputs`` write.
        label_values: value on disk of each class, background first.
        output_ext: ending of the label maps.
        same_format: write each label map in the format of its scan, where that holds label maps.
        probabilities: whether corrections and outputs get them; they take 2 bytes a voxel and class of the disk while
            the scan is segmented.
        corrections: applied in this order before the label map is written.
        outputs: called in this order after it was written.
        checkpoint: the weights, whose hash decides whether a label map is up to date.
        options: all else that the result depends on; a rerun with others does every scan again.

    Returns:
        One record for each scan: name, path, process (its rank), status ("done", "failed"), reason, seconds, warnings,
        label_map, numbers. ``new`` says whether this run did it. Complete on the first process only, which waits for
        the others.

    Raises:
        OSError: when the disk is full or cannot be written; the scans done until then are kept.
    """
    output_dir = Path(output_dir)
    _open_folder(output_dir)
    records = Records(output_dir)
    weights = None if checkpoint is None else {"path": str(checkpoint), "sha256": sha256(checkpoint)}
    started = time.time()
    about: dict[str, Any] = {
        "started": _now(),
        "versions": versions(),
        "weights": weights,
        "config": dict(options or {}),
        "device": str(segmenter.windows.device),
    }
    keys = {
        scan.name: fingerprint(scan_state(scan), weights and weights["sha256"], options, versions()["monai_skelrec"])
        for scan in scans
    }
    before = {scan.name: records.read(scan.name) for scan in scans}
    pending = [scan for scan in scans if not _up_to_date(before[scan.name], keys[scan.name], output_dir)]
    pending.sort(key=lambda scan: before[scan.name].get("status") == "begun")
    pending, own, run = _share(pending, before)
    waiting = {scan.name for scan in pending} - {scan.name for scan in own}
    bar = tqdm(
        total=len(scans),
        initial=len(scans) - len(pending),
        desc="segmenting",
        unit="scan",
        disable=not is_first(),
        ascii=True,  # logs are read in any encoding
    )
    try:
        for scan in own:
            known = {
                "name": scan.name,
                "path": str(Path(scan.path).resolve()),
                "key": keys[scan.name],
                "run": run,
                "process": idist.get_rank(),
            }
            ending_now = ending_like(scan.path, output_ext) if same_format else output_ext
            target = output_dir / f"{scan.name}{ending_now}"
            records.write(scan.name, {**known, "status": "begun", "started": _now()})
            try:
                _refuse_target(scan, target, before[scan.name])
                made = _segment(scan, segmenter, read, target, label_values, probabilities, corrections, outputs)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _DISK:
                    raise
                made = {"status": "failed", "reason": _reason(error), "refused": isinstance(error, UnusableScan)}
                logging.getLogger(__name__).error(f"{scan.name}: {made['reason']}")
            records.write(scan.name, {**known, **made, "finished": _now()})
            bar.update(1 + len(_finished(waiting, records, run)))
        while is_first() and waiting:  # torchrun ends this process when another one dies
            bar.update(len(_finished(waiting, records, run)))
            time.sleep(_POLL if waiting else 0)
    finally:
        bar.close()
        listed = [_shown(scan, records.read(scan.name), keys[scan.name]) for scan in scans]
        if is_first():
            with suppress(OSError):  # the error that ends the run, such as a full disk, says more than this one
                about |= {"finished": _now(), "seconds": round(time.time() - started, 1)}
                write_manifest(output_dir, about, listed)
    return [{**record, "new": record.get("run") == run} for record in listed]


def options_of_run() -> dict[str, Any]:
    """The merged configuration of the bundle's workflow that is running, without what no label map depends on.

    Raises:
        RuntimeError: when it is not called from a bundle workflow.
    """
    config = running_config()
    return {name: value for name, value in config.items() if name not in _WITHOUT_EFFECT and name[0] != "_"}


def require_all_segmented(records: Sequence[Mapping[str, Any]]) -> None:
    """Say what was done, and stop with every scan that could not be segmented; for the end of a run.

    Raises:
        ValueError: when a scan could not be segmented.
    """
    failed = [record for record in records if record["status"] != "done"]
    new = sum(record["status"] == "done" and record["new"] for record in records)
    old = sum(record["status"] == "done" and not record["new"] for record in records)
    sys.stdout.write(f"{new} label maps written, {old} were up to date, {len(failed)} scans failed\n")
    for record in records:
        for warning in record.get("warnings", []):
            sys.stdout.write(f"warning: {record['name']}: {warning}\n")
    if failed:
        named = "; ".join(f"{record['name']}: {str(record['reason']).rstrip('.')}" for record in failed)
        raise ValueError(f"{len(failed)} of {len(records)} scans could not be segmented: {named}.")


def _segment(
    scan: Scan,
    segmenter: Segmenter,
    read: Callable[[Scan], Loaded],
    target: Path,
    label_values: Sequence[int],
    probabilities: bool,
    corrections: Sequence[Correction],
    outputs: Sequence[Output],
) -> dict[str, Any]:
    """One scan from its file to its label map and all that comes with it."""
    began = time.time()
    remove_unfinished(target)
    on_disk = target.with_name(f".{target.name}.probabilities")  # a name that remove_unfinished knows

    def make(shape: tuple[int, ...]) -> np.ndarray:
        return np.lib.format.open_memmap(on_disk, "w+", np.float16, shape)

    def load() -> Loaded:
        return read(scan)

    try:
        labels, affine, shares, plan, warnings = segmenter(load, make if probabilities else None)
        for correct in corrections:
            labels = correct(labels=labels, affine=affine, probabilities=shares)
        values = np.asarray(label_values, np.uint8 if max(label_values) < 256 else np.uint16)
        write_label_map(target, values[labels], affine, scan.path)
        about = target.stat()
        numbers: dict[str, Any] = {}
        for output in outputs:
            numbers |= output(
                name=scan.name, labels=labels, affine=affine, probabilities=shares, output_dir=target.parent, load=load
            )
    finally:
        on_disk.unlink(missing_ok=True)
    if not labels.any():
        warnings.append("nothing was found in it: the label map is background only")
    now = target.stat()
    if (about.st_size, about.st_mtime_ns) != (now.st_size, now.st_mtime_ns):
        raise ValueError(f"an output wrote over the label map {target.name}; set another output_ext.")
    return {
        "status": "done",
        "label_map": target.name,
        "written": [about.st_size, about.st_mtime_ns],
        "seconds": round(time.time() - began, 2),
        "warnings": warnings,
        "plan": plan._asdict(),
        "numbers": numbers,
    }


def _open_folder(output_dir: Path) -> None:
    """Find out before the first scan whether label maps can be written."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"0" * 4096)
    except OSError as error:
        raise OSError(
            error.errno, f"output_dir {str(output_dir)!r} cannot be written ({error.strerror}); take another."
        ) from None
    hold_folder(output_dir)


def _up_to_date(record: Mapping[str, Any], key: str, output_dir: Path) -> bool:
    """Whether a scan needs nothing: its label map is there, or the same file was refused before."""
    if record.get("key") != key:
        return False
    if record.get("status") != "done":
        return bool(record.get("refused"))
    path = output_dir / str(record["label_map"])
    return path.is_file() and [path.stat().st_size, path.stat().st_mtime_ns] == record["written"]


def _refuse_target(scan: Scan, target: Path, earlier: Mapping[str, Any]) -> None:
    """Keep a label map from taking the place of its scan, or of another scan's label map."""
    if target.resolve() == Path(scan.path).resolve():
        raise ValueError(f"the label map would overwrite the scan {scan.path}; take another output_dir.")
    other = earlier.get("path")
    moved = other is not None and Path(other) != Path(scan.path).resolve()
    if moved and earlier.get("status") == "done" and Path(str(other)).exists() and target.exists():
        raise ValueError(f"{target} is the label map of another scan, {other}; take another output_dir.")


def _share(pending: list[Scan], before: Mapping[str, Mapping[str, Any]]) -> tuple[list[Scan], list[Scan], str]:
    """What is to be done, what of it by this process, and a word for this run; the same for all processes."""
    if idist.get_world_size() == 1:
        return pending, pending, uuid.uuid4().hex

    def order(scan: Scan) -> tuple[bool, int]:
        # large ones first, so that no process begins one when the others have ended
        return before[scan.name].get("status") == "begun", -sum(size for _, size, _ in scan_state(scan))

    # a process that looks later might find less to do: the first one decides for all
    agreed: list[Any] = [sorted(pending, key=order), uuid.uuid4().hex]
    dist.broadcast_object_list(agreed, src=0)
    return agreed[0], agreed[0][idist.get_rank() :: idist.get_world_size()], agreed[1]


def _finished(waiting: set[str], records: Records, run: str) -> set[str]:
    """Take out of ``waiting`` what another process has ended in this run."""
    ended = set()
    for name in waiting if is_first() else ():
        record = records.read(name)
        if record.get("run") == run and record.get("status") in ("done", "failed"):
            ended.add(name)
    waiting -= ended
    return ended


def _shown(scan: Scan, record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The record of a scan as the manifest has it."""
    shown: dict[str, Any] = {"name": scan.name, "path": scan.path, "status": "missing", "reason": "it was not begun"}
    if record.get("key") == key:
        shown |= {"reason": "the run was stopped" if record.get("status") == "begun" else None} | dict(record)
    if scan.series is not None:
        shown["series"] = scan.series
    return shown


def _reason(error: BaseException) -> str:
    """What happened, in one sentence."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip() or type(error).__name__
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text:
        return f"there was not enough memory ({text.splitlines()[0]}): lower max_memory_gb or patch_size's batch"
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

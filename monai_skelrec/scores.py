"""Step "label maps -> scores": predictions on disk against references on disk -> tables per case and per class.

Cases are scored in processes of their own, and each leaves its result beside the tables, so that a scoring that was
stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from monai.utils import optional_import
from tqdm import tqdm

from .case_scores import MERGED, check_classes, check_measures, score_case, score_indices
from .files import replace
from .fingerprints import file_state
from .label_maps import read_label_map
from .pairs import Matched, indices_of, match_label_maps, read_pair, read_raw_pair
from .summaries import AVERAGE, CONVENTIONS, format_table, summarise, write_json, write_tables

__all__ = [
    "AVERAGE",
    "CONVENTIONS",
    "MERGED",
    "Scores",
    "format_table",
    "match_label_maps",
    "read_label_map",
    "read_pair",
    "require_all_scored",
    "score_case",
    "score_indices",
    "score_label_maps",
]

Row = dict[str, Any]

_FORMAT = 1  # of the results beside the tables; a new number where a measure changes its value


@dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
        rows: one a case and class: ``case``, ``class`` and the measures of :py:mod:`monai_skelrec.measures`.
        summary: one a class, then the class average and the merged foreground: ``class``, ``cases`` (how many count),
            and ``<score>_mean`` and ``<score>_std`` of each score.
        errors: one a case that could not be scored: ``case`` and ``error``, a sentence.
        challenge: scores over cases under the names of the challenge that was asked for; empty without one.
    """

    rows: list[Row]
    summary: list[Row]
    errors: list[dict[str, str]]
    challenge: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Options:
    """What the scores of a case depend on, beside its files."""

    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    other_values: str
    voxel_size: tuple[float, ...] | None
    measures: tuple[str, ...]
    challenge: str | None
    check_grid: bool


def score_label_maps(
    cases: Iterable[Mapping[str, str]] | Matched,
    predictions_dir: str | Path | None,
    output_ext: str,
    class_names: Sequence[str],
    label_values: Sequence[int],
    other_values: str,
    output_dir: str | Path,
    voxel_size: Sequence[float] | None = None,
    measures: Sequence[str] | None = None,
    challenge: str | None = None,
    workers: int = 1,
    check_grid: bool = True,
    partial: bool = False,
) -> Scores:
    """Score every predicted label map against its reference, and write the tables.

    Both are read as stored, without reorientation or resampling. A case that cannot be scored is listed and the others
    are still scored; :py:func:`require_all_scored` turns the list into an error afterwards.

    Each case leaves its scores in ``<output_dir>/cases``. They are taken from there where the sizes and times of both
    files, and all arguments that scores depend on, are those they were made of.

    Args:
        cases: dictionaries with ``name`` and ``label``, the path of the reference, and ``prediction``, that of the
            prediction, where it is not ``<predictions_dir>/<name><output_ext>``; or what
            :py:func:`monai_skelrec.pairs.match_label_maps` found.
        predictions_dir: holds the predictions, in the values of the references; None where every case names its own.
        output_ext: ending of the predictions' names, such as ``".nii.gz"``.
        class_names: name of each class, background first.
        label_values: value on disk of each class, as ``class_names``.
        other_values: what a value not listed means: ``"error"``, ``"background"`` or ``"foreground"``.
        output_dir: gets ``scores.csv`` (per case and class), ``summary.csv`` (per class over cases),
            ``summary.json`` (the same, the cases that failed, and the conventions), and with a challenge
            ``challenge.json``.
        voxel_size: edges of a voxel in mm for files that carry none; None for 1.
        measures: names of :py:data:`monai_skelrec.measures.MEASURES`; None for all.
        challenge: a name of :py:data:`monai_skelrec.challenges.CHALLENGES`, whose own scores are computed as well, on
            the values on disk.
        workers: cases at once, each in a process that reads one case at a time: memory is bounded by ``workers`` times
            that of the largest case, about 25 bytes a voxel. With 1, this process scores, its threads over classes.
        check_grid: whether spacing, direction and origin of both files must agree; shapes always must.
        partial: whether files without a counterpart are listed in ``summary.json`` only, instead of failing.

    Returns:
        Rows, summary and errors.

    Raises:
        FileNotFoundError: when ``predictions_dir`` is not a folder.
        ValueError: when there are no cases, a measure or challenge is unknown, or ``class_names`` and ``label_values``
            do not fit each other.
        RuntimeError: when a process was killed, as by lack of memory; what was scored until then is kept.
    """
    matched = cases if isinstance(cases, Matched) else Matched([dict(case) for case in cases], [])
    if not matched.cases:
        raise ValueError("there are no cases to score: cases is empty.")
    if predictions_dir is not None and not Path(predictions_dir).is_dir():
        raise FileNotFoundError(f"predictions_dir {str(predictions_dir)!r} is not a folder; predict the cases first.")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}.")
    check_classes(class_names, label_values)
    of_challenge = None if challenge is None else _challenge(challenge)
    options = _Options(
        tuple(class_names),
        tuple(label_values),
        other_values,
        None if voxel_size is None else tuple(float(edge) for edge in voxel_size),
        check_measures(measures),
        challenge,
        check_grid,
    )
    paths = {
        case["name"]: (
            case.get("prediction") or str(Path(predictions_dir or ".") / f"{case['name']}{output_ext}"),
            case["label"],
        )
        for case in matched.cases
    }
    output_dir = Path(output_dir)
    results: dict[str, dict[str, Any]] = {}
    progress = tqdm(_score_all(paths, options, output_dir / "cases", workers), "scoring", len(paths), unit="case")
    for name, result in progress:
        results[name] = result

    rows = [{"case": name, **row} for name in paths for row in results[name].get("rows", [])]
    errors = [{"case": name, "error": results[name]["error"]} for name in paths if "error" in results[name]]
    errors += [] if partial else matched.missing
    summary = summarise(rows, class_names)
    aggregated: dict[str, Any] = {}
    if of_challenge is not None:
        per_case = {name: results[name]["challenge"] for name in paths if "challenge" in results[name]}
        aggregated = of_challenge.aggregate(list(per_case.values())) if per_case else {}
        content = {"challenge": challenge, "conventions": dict(of_challenge.conventions), "scores": aggregated}
        write_json(output_dir / "challenge.json", {**content, "cases": per_case})
    unmatched = [f"{each['case']}: {each['error']}" for each in matched.missing] if partial else []
    given = len(paths) + (0 if partial else len(matched.missing))
    write_tables(rows, summary, errors, output_dir, given, unmatched)
    return Scores(rows, summary, errors, aggregated)


def require_all_scored(scores: Scores) -> Scores:
    """Pass ``scores`` on, or stop with every case that could not be scored; for the end of a run.

    Raises:
        ValueError: when a case could not be scored.
    """
    if scores.errors:
        named = "; ".join(f"{error['case']}: {error['error'].rstrip('.')}" for error in scores.errors)
        number = f"{len(scores.errors)} case{'s' if len(scores.errors) > 1 else ''}"
        raise ValueError(f"{number} could not be scored, the others were: {named}.")
    return scores


def _score_all(
    paths: Mapping[str, tuple[str, str]], options: _Options, kept: Path, workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Scores of each case: those that are kept already, then the others in the order in which they get ready."""
    kept.mkdir(parents=True, exist_ok=True)
    todo = {}
    for name, files in paths.items():
        key = _key(files, options)
        before = _read_kept(kept / f"{name}.json", key)
        if before is None:
            todo[name] = key
        else:
            yield name, before
    for name, result in _score_new({name: paths[name] for name in todo}, options, min(workers, len(todo))):
        if "error" not in result:
            _keep(kept / f"{name}.json", {"key": todo[name], **result})
        yield name, result


def _score_new(
    paths: Mapping[str, tuple[str, str]], options: _Options, workers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    if workers < 2:
        for name, files in paths.items():
            yield name, _score_files(*files, options)
        return
    threads = max(1, torch.get_num_threads() // workers)
    # a forked child of a process with threads may hang; these start anew
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (threads,)) as pool:
        running = {pool.submit(_score_files, *files, options): name for name, files in paths.items()}
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"a process that scored was killed, most likely for lack of memory; lower workers ({workers}) and run "
                "again, the cases that were scored are kept."
            ) from error
        finally:
            # whoever stops waits for the cases under way only
            pool.shutdown(cancel_futures=True)


def _score_files(prediction_path: str, reference_path: str, options: _Options) -> dict[str, Any]:
    """Rows of one case, or the sentence that says why there are none."""
    try:
        pair = read_raw_pair(prediction_path, reference_path, options.check_grid)
        pred, reference = indices_of(pair, prediction_path, reference_path, options.label_values, options.other_values)
        spacing = pair.spacing or options.voxel_size
        result: dict[str, Any] = {}
        if options.challenge is not None:
            spacing_or_1 = spacing or (1.0,) * reference.ndim
            result["challenge"] = _challenge(options.challenge).score(pair.pred, pair.reference, spacing_or_1)
        del pair
        result["rows"] = score_indices(pred, reference, options.class_names, spacing, options.measures)
    except (FileNotFoundError, ValueError) as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"{reference_path} and its prediction do not fit into memory; lower workers."}
    # as it will be read again, so that a scoring that goes on gives what one in a single run gives
    plain: dict[str, Any] = json.loads(json.dumps(result, default=_number))
    return plain


def _key(files: Sequence[str], options: _Options) -> str:
    """Fingerprint of everything that the scores of a case depend on."""
    seen = [(file, file_state(file)) for file in files]  # no state: it is missing
    versions = (_FORMAT, version("monai"), version("scikit-image"))
    text = json.dumps([seen, asdict(options), versions])
    return hashlib.sha256(text.encode()).hexdigest()


def _read_kept(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # damaged: scored anew
    return (
        {name: content[name] for name in ("rows", "challenge") if name in content}
        if content.get("key") == key
        else None
    )


def _keep(path: Path, content: Mapping[str, Any]) -> None:
    replace(path, lambda beside: beside.write_text(json.dumps(content), encoding="utf-8"))


def _challenge(name: str) -> Any:
    challenges, _ = optional_import("monai_skelrec.challenges", name="CHALLENGES")
    if name not in challenges:
        raise ValueError(f"challenge must be one of {', '.join(challenges)}, or null for none, got {name!r}.")
    return challenges[name]


def _number(value: Any) -> float:
    """A NumPy scalar as JSON knows it."""
    plain = value.item()
    return math.nan if plain is None else plain

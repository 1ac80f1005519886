"""All steps, once a loss, seed and fold: losses side by side on one task, with one budget, resumed whenever stopped."""

from __future__ import annotations

import csv
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from monai.bundle import ConfigParser
from monai.engines import SupervisedTrainer

from .case_scores import check_measures
from .checkpoints import CONFIG, LAST, finished_epochs
from .child_runs import run_child
from .comparisons import read_run
from .locks import hold_folder
from .loss_pictures import Evaluation, draw_differences
from .loss_table import COST, LossRun, write_loss_table
from .panels import matplotlib_module
from .peak_memory import peak_bytes
from .summaries import as_written, write_json
from .throughput import measure_training
from .workflows import TASK, running_workflow, write_yaml

__all__ = ["HELD_OUT", "compare_losses", "write_step_cost"]


HELD_OUT = "held_out"

# what evaluation takes over from the configuration of the training
_SHARED = ("bundle_root", "overlap", "sw_batch_size", "amp", "device", "pictures", "measures")
# and what of it scores depend on; they are told apart by it, in a file beside them
_OF_SCORES = ("dataset_dir", "fold", "case_folders", "overlap", "amp")
_ASKED = "asked.json"
# what may change between two calls: none of it changes what a run trains on or how long
_FREE = {"losses", "loss_library", "seeds", "compared_folds", "baselines", "parallel", "report_on", "report_folders"}
_FREE |= {"measures", "cost_steps", "device", "num_workers", "overlap", "sw_batch_size", "pictures", "output_dir"}
_FREE |= {"cache", "cache_dir", "cache_rate", "comparing", "costing", "run"}


class _Job(NamedTuple):
    loss: str
    seed: int
    fold: int | str


def compare_losses(
    output_dir: str,
    losses: Sequence[str],
    seeds: Sequence[int],
    compared_folds: Sequence[int | str],
    epochs: int,
    measures: Sequence[str],
    baselines: Sequence[str] = (),
    report_on: Sequence[str] = (HELD_OUT,),
    report_folders: Sequence[str] | None = None,
    parallel: int = 1,
    cost_steps: int = 12,
    pictures: int = 3,
) -> Path:
    """Train every loss with every seed on every fold, score each run, and write the table.

    Each run is a process and a folder of its own, ``<output_dir>/<loss>/fold_<fold>_seed_<seed>``. Called again, what
    is finished is left alone and what was stopped goes on; losses, seeds and folds may be added, the budget may not
    change; where other cases are asked for, or the overlap of windows changed, runs are scored again. All losses of a
    seed are run before the next one, and the table is written after every run, so a comparison that is stopped half
    way compares like with like.

    Args:
        output_dir: gets the runs and the table, see :py:func:`monai_skelrec.loss_table.write_loss_table`.
        losses: names of ``loss_library`` in the running configuration, whose entries are laid over it.
        seeds: one run each.
        compared_folds: folds that are held out, one run each; ``"all"``: nothing is.
        epochs: of each run.
        measures: columns of the table, names of :py:data:`monai_skelrec.measures.MEASURES`.
        baselines: losses that the others are tested against, case by case.
        report_on: what is scored: :py:data:`HELD_OUT`, the run's own fold, and folders in the layout of the task.
        report_folders: ``case_folders`` of those folders, where they are called otherwise than in training.
        parallel: runs at once.
        cost_steps: steps in which time and memory of each loss are measured, when all runs are done, from the weights
            of its first run; 0: they are not.
        pictures: cases drawn side by side when all runs are done, those on which the losses differ most; 0: none. See
            :py:func:`monai_skelrec.loss_pictures.draw_differences`.

    Returns:
        Path of the table.

    Raises:
        ImportError: when there shall be pictures and matplotlib is not installed.
        FileNotFoundError: when a folder of ``report_on`` is missing; or a label map that shall be drawn, and the table
            was still written.
        ValueError: when a loss is not in the library or named twice, a measure is unknown, nothing is to be compared,
            held-out cases are asked for where none are, or ``output_dir`` holds runs of another budget.
        FileExistsError: when another command is writing ``output_dir``.
        RuntimeError: when a run, or the measurement of a cost, ended with an error; the others were still finished.
    """
    workflow, folder = running_workflow(), Path(output_dir)
    merged = cast(dict[str, Any], workflow.parser.config)
    merged = {name: value for name, value in merged.items() if name != ConfigParser.meta_key}
    library = merged["loss_library"]
    _refuse_mistakes(library, losses, seeds, compared_folds, measures, baselines, report_on, parallel)
    if pictures > 0:
        matplotlib_module("figure")  # nobody should train for days to hear that it is missing
    merged = {name: value for name, value in merged.items() if name != "loss_library"}
    _refuse_other_budget(folder / CONFIG, merged)
    for loss in losses:
        _refuse_other_budget(folder / loss / "loss.yaml", library[loss])
    hold_folder(folder)
    write_yaml(folder / CONFIG, merged, "# The configuration of every run; loss, seed and fold are set for each.")
    for loss in losses:
        (folder / loss).mkdir(exist_ok=True)
        write_yaml(folder / loss / "loss.yaml", library[loss], f"# What {loss} changes of it.")

    configs = Path(workflow.config_root_path)
    reports = {f"report_{at}": None if where == HELD_OUT else where for at, where in enumerate(report_on)}
    jobs = [_Job(loss, seed, fold) for seed in seeds for fold in compared_folds for loss in losses]
    budget = ("iterations_per_epoch", "batch_size", "patch_size", "task", "dataset_dir", "report_on")
    about = {"epochs": epochs, **{name: merged.get(name) for name in budget}}

    def scored() -> list[LossRun]:
        runs = [LossRun(job.loss, job.seed, str(job.fold), _run_of(folder, job)) for job in jobs]
        return [run for run in runs if all(_is_scored(asked(run.folder, name), measures) for name in reports)]

    def table(against: Sequence[str] = (), drawn: Sequence[Path] = ()) -> Path:
        return write_loss_table(folder, scored(), list(reports), measures, against, about, len(jobs), drawn)

    def asked(run: Path, name: str) -> dict[str, Any]:
        return _evaluation_knobs(merged, run, name, reports[name], report_folders)

    def evaluation(run: LossRun, name: str) -> Evaluation:
        return _read_evaluation(configs, run.folder, asked(run.folder, name))

    def train_and_score(job: _Job) -> None:
        evaluations = [asked(_run_of(folder, job), name) for name in reports]
        _train_and_score(configs, folder, job, epochs, _cache(folder, merged), evaluations, measures)

    for run in (_run_of(folder, job) for job in jobs):
        if finished_epochs(run) < epochs:
            # scores of weights that are no more
            for name in reports:
                shutil.rmtree(run / name, ignore_errors=True)
    failed: list[str] = []
    with ThreadPoolExecutor(parallel) as pool:
        started = {pool.submit(train_and_score, job): job for job in jobs}
        try:
            for done in as_completed(started):
                job = started[done]
                if done.exception() is None:
                    logging.getLogger(__name__).info(f"{job.loss}, seed {job.seed}, fold {job.fold}: done")
                    table()
                elif isinstance(done.exception(), RuntimeError):
                    failed.append(str(done.exception()))
                else:
                    done.result()
        except BaseException:  # an interrupt too: what is not yet begun shall not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    unmeasured: list[str] = []
    for loss in losses if cost_steps > 0 else ():
        if not (folder / loss / COST).is_file():
            # what a term costs may depend on how much of the prediction is wrong
            trained = [_run_of(folder, job) / LAST for job in jobs if job.loss == loss]
            trained = [weights for weights in trained if weights.is_file()]
            if not trained:
                logging.getLogger(__name__).warning(
                    f"the cost of {loss} is not measured: none of its runs has weights."
                )
                continue
            files = [configs / "train.yaml", folder / CONFIG, folder / loss / "loss.yaml", configs / "profiling.yaml"]
            knobs = {"iterations_per_epoch": cost_steps, "output_dir": folder / loss, "fold": compared_folds[0]}
            knobs["start_from"] = str(trained[0])
            knobs["cache_dir"] = _cache(folder, merged)
            try:
                run_child("costing", files, knobs, 1, f"cost of {loss}", folder / loss / "cost.log")
            except RuntimeError as error:  # too little memory, say: tests and pictures do not need it
                unmeasured.append(str(error))
    drawn: list[Path] = []
    differ_by = "centerline_dice" if "centerline_dice" in measures else measures[0]
    try:
        drawn = draw_differences(folder, scored(), list(reports), evaluation, pictures, differ_by)
    finally:  # what cannot be drawn costs nobody the table
        path = table(baselines, drawn)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(jobs)} runs failed, the table holds the others: {failed[0]}")
    if unmeasured:
        raise RuntimeError(
            f"the table is written, {len(unmeasured)} of its costs could not be measured: {unmeasured[0]}"
        )
    return path


def write_step_cost(trainer: SupervisedTrainer, output_dir: str) -> None:
    """Run a trainer to its end and write ``cost.json``: seconds a step, loading included, and the peak of memory.

    On a CPU seconds are processor time, which other processes do not prolong, and memory is that of the process; on a
    GPU they are the clock's, and memory is what PyTorch allocated.

    Args:
        trainer: of one short epoch, at least four iterations.
        output_dir: gets the file.
    """
    rows, _ = measure_training(trainer)
    on_gpu = str(trainer.state.device).startswith("cuda")
    seconds = sum(row.clock_ms if on_gpu else row.processor_ms for row in rows) / 1000
    write_json(
        Path(output_dir) / COST,
        {"seconds": seconds, "memory_mib": peak_bytes(trainer.state.device) / 2**20, "gpu": on_gpu},
    )


def _run_of(folder: Path, job: _Job) -> Path:
    return folder / job.loss / f"fold_{job.fold}_seed_{job.seed}"


def _cache(folder: Path, merged: Mapping[str, Any]) -> Any:
    """One for all runs, unless it was named."""
    named = merged.get("cache_dir")
    return folder / "cache" if named is None or str(named).startswith("$") else named


def _train_and_score(
    configs: Path,
    folder: Path,
    job: _Job,
    epochs: int,
    cache_dir: Any,
    evaluations: Sequence[Mapping[str, Any]],
    measures: Sequence[str],
) -> None:
    run, what = _run_of(folder, job), f"{job.loss}, seed {job.seed}, fold {job.fold}"
    log = folder / job.loss / f"{run.name}.log"
    if finished_epochs(run) < epochs:
        knobs = {"seed": job.seed, "fold": job.fold, "output_dir": run, "cache_dir": cache_dir}
        files = [configs / "train.yaml", folder / CONFIG, folder / job.loss / "loss.yaml"]
        run_child("training", files, {**knobs, "resume": (run / CONFIG).is_file()}, 1, what, log)
    for evaluation in evaluations:
        report = evaluation["output_dir"]
        if _is_scored(evaluation, measures) and not read_run(report).errors:
            continue
        if not _is_of(evaluation):
            shutil.rmtree(report, ignore_errors=True)  # scores and label maps of other cases
            report.mkdir()
            # before it is scored: what an interrupted evaluation has segmented is of use to the next one
            write_json(report / _ASKED, _of_scores(evaluation))
        run_child("evaluating", _evaluation_files(configs, run), evaluation, 1, f"scoring of {what}", log)


def _evaluation_files(configs: Path, run: Path) -> list[Path]:
    return [configs / "evaluate.yaml", run / TASK]


def _evaluation_knobs(
    merged: Mapping[str, Any], run: Path, name: str, where: str | None, report_folders: Sequence[str] | None
) -> dict[str, Any]:
    """What the evaluation of a run is told: of its own fold, or of all cases of a folder."""
    knobs = {key: merged[key] for key in _SHARED if key in merged} | {"output_dir": run / name}
    knobs["dataset_dir"] = where or merged["dataset_dir"]
    if where is not None:
        knobs["fold"] = "all"
        if report_folders is not None:
            knobs["case_folders"] = list(report_folders)
    return knobs


def _read_evaluation(configs: Path, run: Path, knobs: Mapping[str, Any]) -> Evaluation:
    """What an evaluation of these knobs scores, from its configuration."""
    parser = ConfigParser()
    parser.read_config([str(file) for file in _evaluation_files(configs, run)])
    for name, value in knobs.items():
        parser[name] = value
    facts = [parser.get_parsed_content(name) for name in Evaluation._fields[1:]]
    return Evaluation(parser.get_parsed_content("split").held_out, *facts)


def _of_scores(knobs: Mapping[str, Any]) -> dict[str, Any]:
    return as_written({name: knobs.get(name) for name in _OF_SCORES})


def _is_of(knobs: Mapping[str, Any]) -> bool:
    """Whether the scores where an evaluation of these knobs would write are of these knobs."""
    asked = knobs["output_dir"] / _ASKED
    return asked.is_file() and json.loads(asked.read_text(encoding="utf-8")) == _of_scores(knobs)


def _is_scored(knobs: Mapping[str, Any], measures: Sequence[str]) -> bool:
    scores = knobs["output_dir"] / "scores.csv"
    if not (_is_of(knobs) and scores.is_file()):
        return False
    with open(scores, newline="", encoding="utf-8") as file:
        return set(measures) <= set(next(csv.reader(file), []))


def _refuse_mistakes(
    library: Mapping[str, Any],
    losses: Sequence[str],
    seeds: Sequence[int],
    compared_folds: Sequence[int | str],
    measures: Sequence[str],
    baselines: Sequence[str],
    report_on: Sequence[str],
    parallel: int,
) -> None:
    """What would be found out after the first training otherwise, or after the last."""
    unknown = [name for name in (*losses, *baselines) if name not in library]
    if unknown:
        raise ValueError(f"losses must be of {', '.join(library)}, got {unknown[0]!r}; add it to loss_library.")
    twice = [name for name in losses if list(losses).count(name) > 1]
    if twice:
        raise ValueError(f"each of losses must be named once, got {twice[0]!r} twice; another seed goes into seeds.")
    check_measures(measures)
    if not (losses and seeds and compared_folds and report_on) or parallel < 1:
        raise ValueError("a comparison needs losses, seeds, compared_folds, report_on and at least 1 run in parallel.")
    if HELD_OUT in report_on and "all" in compared_folds:
        raise ValueError("fold 'all' holds nothing out: set report_on to folders of cases that nobody trained on.")
    for where in report_on:
        if where != HELD_OUT and not Path(where).is_dir():
            raise FileNotFoundError(
                f"report_on must be {HELD_OUT!r} or a folder of cases, got {where!r}: no such folder."
            )


def _refuse_other_budget(path: Path, config: Mapping[str, Any]) -> None:
    if not path.is_file():
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    now = as_written(config)
    changed = [key for key in {**before, **now} if key not in _FREE and before.get(key) != now.get(key)]
    if changed:
        raise ValueError(
            f"{str(path.parent)!r} holds runs with another {', '.join(changed)}, which would stand in one table; "
            "take another --output_dir."
        )

"""All steps, once a fold: every fold is trained, all held-out cases are scored together, the networks are joined."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from monai.bundle import ConfigParser

from .checkpoints import CONFIG, WEIGHTS, finished_epochs
from .child_runs import run_child
from .ensembles import write_ensemble
from .locks import hold_folder
from .workflows import TASK, running_workflow, write_yaml

__all__ = ["cross_validate"]

# what evaluation takes over from the configuration of the training
_SHARED = ("bundle_root", "dataset_dir", "overlap", "sw_batch_size", "amp", "device")


def cross_validate(output_dir: str, folds: int, epochs: int, processes: int = 1) -> None:
    """Train every fold, score the union of their held-out cases, and write the ensemble of their networks.

    Each fold is a run of its own, in a process of its own, and may be trained beforehand or elsewhere by ``run training
    --fold K --output_dir <output_dir>/fold_K``. Called again, finished folds are left alone and the one that was
    stopped goes on.

    Args:
        output_dir: gets ``config.yaml``, ``fold_0/`` ... (runs), ``evaluation/`` (label maps, scores, pictures) and
            ``ensemble/`` (see :py:func:`monai_skelrec.ensembles.write_ensemble`).
        folds: how many.
        epochs: of each.
        processes: that train a fold together, see ``multi_gpu_train.yaml``.

    Raises:
        RuntimeError: when a fold, or the scoring, ended with an error, which stands above; or when it is not called
            from a bundle workflow.
    """
    workflow, folder = running_workflow(), Path(output_dir)
    configs = Path(workflow.config_root_path)
    config = cast(dict[str, Any], workflow.parser.config)
    merged = {name: value for name, value in config.items() if name != ConfigParser.meta_key}
    runs = [folder / f"fold_{fold}" for fold in range(folds)]
    hold_folder(folder)
    write_yaml(folder / CONFIG, merged, "# The configuration of every fold; fold and output_dir are set for each.")

    multi_gpu = [configs / "multi_gpu_train.yaml"] * (processes > 1)
    for fold, run in enumerate(runs):
        if finished_epochs(run) >= epochs:
            continue
        knobs = {"fold": fold, "output_dir": run, "resume": (run / CONFIG).is_file()}
        files = [configs / "train.yaml", folder / CONFIG, *multi_gpu]
        run_child("training", files, knobs, processes, f"fold {fold}")

    scores = folder / "evaluation"
    shared = {name: merged[name] for name in _SHARED if name in merged}
    multi_gpu = [configs / "multi_gpu_evaluate.yaml"] * (processes > 1)
    for fold, run in enumerate(runs):
        # several processes find a device each
        knobs = {k: v for k, v in shared.items() if k != "device" or processes == 1} | {"output_dir": scores / run.name}
        files = [configs / "evaluate.yaml", run / TASK, *multi_gpu, configs / "cross_validation.yaml"]
        run_child("predicting", files, knobs, processes, f"prediction of fold {fold}")
        shutil.copytree(scores / run.name / "predictions", scores / "predictions", dirs_exist_ok=True)
    files = [configs / "evaluate.yaml", runs[0] / TASK, configs / "cross_validation.yaml"]
    # nothing is loaded any more; the report shall name the weights of every fold
    knobs = {**shared, "fold": "all", "output_dir": scores, "checkpoint": folder.resolve() / "fold_*" / WEIGHTS}
    run_child("scoring", files, knobs, 1, "scoring")
    write_ensemble([str(run) for run in runs], str(folder / "ensemble"))

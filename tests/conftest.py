"""Trained runs, made once for all tests of a session, and Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os

import monai.bundle
import pytest
import torch
from bundle_data import SMALL_BUDGET, TASKS_2D, files_of, overlay, small_network, write_data

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """For each task its data and a folder with a trained run; made once."""
    made = {}

    def of(task):
        if task not in made:
            root = tmp_path_factory.mktemp(task)
            spacing = {} if task == "folder" or task in TASKS_2D else {"spacing": [1.0, 1.0, 1.0]}
            monai.bundle.run(
                run_id="training",
                config_file=files_of("train.yaml", *overlay(task)),
                dataset_dir=str(write_data(task, root / "data")),
                output_dir=str(root / "run"),
                **SMALL_BUDGET,
                **small_network(task),
                **spacing,
            )
            made[task] = root
        return made[task]

    return of

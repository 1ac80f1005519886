"""All steps, each in a process of its own: one bundle command started by another one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["run_child"]


def run_child(
    run_id: str,
    files: Sequence[Path | str],
    knobs: Mapping[str, Any],
    processes: int,
    what: str,
    log: Path | None = None,
) -> None:
    """One bundle command in a process of its own, which gives all its memory back.

    Args:
        run_id: what is run.
        files: configs, one over the other.
        knobs: names and values of the command line.
        processes: that share the work, under torchrun; 1: none but the one.
        what: it is, for the message.
        log: file that what it prints is appended to; None: it is seen.

    Raises:
        RuntimeError: when it ended with an error.
    """
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command += ["monai.bundle", "run", run_id, "--config_file", str([str(file) for file in files])]
    for name, value in knobs.items():
        command += [f"--{name}", str(value)]
    # it finds the packages that this process found
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if log is None:
        done = subprocess.run(command, env=environment, check=False)
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            done = subprocess.run(command, env=environment, check=False, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        where = "stands above" if log is None else f"is the end of {str(log)!r}"
        raise RuntimeError(
            f"{what} ended with code {done.returncode}, its error {where}; mend its cause and give the same command "
            "again: what is finished is not done twice."
        )

"""What a run of the bundle needs and MONAI lacks.

Misspelt names are refused, what was run is written beside what came out, and the last line of a failure is its cause.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import monai.bundle
import numpy as np
import torch
import yaml
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser, ConfigWorkflow
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from .checkpoints import CONFIG, LAST, PREVIOUS, WEIGHTS, refuse_other_network
from .files import replace
from .inferers import mirror_images
from .locks import hold_folder
from .processes import is_first
from .sides import pair_indices

__all__ = [
    "FACTS",
    "RECIPE",
    "SPLIT",
    "TASK",
    "check_checkpoint",
    "check_plan",
    "open_run",
    "refuse_unknown_names",
    "root_cause",
    "running_config",
    "running_workflow",
    "show_root_cause",
    "write_yaml",
]

# what a task file may say, and what a run hands on to evaluation and inference in its task.yaml
FACTS = (
    "task",
    "class_names",
    "label_values",
    "other_values",
    "spatial_dims",
    "in_channels",
    "voxel_size",
    "spacing",
    "intensity",
    "patch_size",
    "strides",
    "kernel_size",
    "filters",
    "residual",
    "mirror_axes",
    "mirror_pairs",
    "skeleton_groups",
    "layout",
    "case_folders",
    "scans",
    "reader",
    "label_reader",
    "output_ext",
    "tube_radius",
    "checkpoint",
)
# what a task file may say to training beside: the published budget of a step
RECIPE = ("batch_size",)
# which cases a run held out: evaluation of the run must hold out the same
SPLIT = ("modality", "fold", "folds", "split_seed", "group_table")

TASK = "task.yaml"

_NUMBER_OR_WORD = ("fold",)  # knobs that take a number or a word

_LOG = "train.log"


# --- the command line ------------------------------------------------------------------------------------------------


def refuse_unknown_names(argv: Sequence[str] | None = None) -> None:
    """Stop when the command line, or its args file, sets a name that no config defines, or a value of another kind.

    MONAI takes ``--max_epoch 5`` without a word and trains for the default number of epochs.

    Args:
        argv: arguments of ``python -m monai.bundle``; default: those of this process. A process that was started
            in another way (a notebook, a service) gave nothing on a command line, and nothing is checked.

    Raises:
        ValueError: naming what is unknown and what comes near it, or the value that has another kind.
    """
    if argv is None:
        argv = sys.argv[1:] if Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py") else []
    if not argv or not argv[0].startswith("run"):
        return
    given = _given(argv[1:])
    if "args_file" in given:
        given = {**ConfigParser.load_config_files(given["args_file"]), **given}
    if "config_file" not in given:
        return
    defined = ConfigParser.load_config_files(given["config_file"])
    tracking = ("experiment_name", "tracking_uri", "run_name", "save_execute_config") if "tracking" in given else ()
    own = set(inspect.signature(monai.bundle.run).parameters) | set(tracking)
    own |= set(inspect.signature(ConfigWorkflow.__init__).parameters) | {"workflow_name"}
    for name, value in given.items():
        top = re.split("::|#", name)[0]
        if top not in defined and top not in own:
            near = difflib.get_close_matches(top, [key for key in defined if not key.startswith("_")])
            hint = f"; did you mean {' or '.join('--' + key for key in near)}?" if near else ""
            raise ValueError(
                f"--{name} is no name of this bundle{hint}" + ("" if near else "; see the knobs in README.md.")
            )
        wrong = _wrong_kind(name, value, defined.get(name)) if top in defined else None
        if wrong:
            raise ValueError(wrong)


def _given(tokens: Sequence[str]) -> dict[str, Any]:
    """Names and values of a command line, as Fire reads them: ``--name value``, ``--name=value``, ``--flag``."""
    given: dict[str, Any] = {}
    for token, following in zip(tokens, [*tokens[1:], "--"]):
        if not re.match(r"--?[A-Za-z_]", token):
            continue
        name, equals, value = token.lstrip("-").partition("=")
        if not equals:
            is_flag = re.match(r"--?[A-Za-z_]|--$", following) is not None
            value = "True" if is_flag else following
        given[name.replace("-", "_")] = DefaultParseValue(value)
    return given


def _wrong_kind(name: str, value: Any, default: Any) -> str | None:
    """What is wrong with a value that MONAI would take, and misread."""
    if isinstance(value, str) and value[:1] in tuple("$@%"):
        return None
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        return f"--{name} None would be ignored; write --{name} '$None'."
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return f"--{name} must be True or False with a capital letter, got {value!r}."
    if isinstance(default, bool) and not isinstance(value, bool):
        return f"--{name} must be True or False, got {value!r}."
    number = isinstance(default, (int, float)) and name not in _NUMBER_OR_WORD
    if (number and isinstance(value, (str, list, dict))) or (
        isinstance(default, list) and not isinstance(value, (list, tuple))
    ):
        return f"--{name} must be like {default!r}, got {value!r}."
    return None


# --- errors ----------------------------------------------------------------------------------------------------------


def show_root_cause() -> None:
    """From now on, the last line of an uncaught error is its cause, not MONAI's "Failed to instantiate ..."."""
    sys.excepthook = _print_root_cause_last


def _print_root_cause_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace)
    if not issubclass(kind, KeyboardInterrupt):
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            # torchrun ends the other processes, and prints the first failure in its summary
            try:
                raise RuntimeError(root_cause(error)) from None
            except RuntimeError as cause:
                get_error_handler().record_exception(cause)
        sys.stderr.write(f"\nError: {root_cause(error)}\n")


def root_cause(error: BaseException) -> str:
    """What went wrong, in the words of the first exception of a chain, also across a data loader's process."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error) or type(error).__name__
    # a worker hands over its whole traceback as text; the first exception in it is the cause
    if "Original Traceback" in text:
        raised = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception): (.*(?:\n(?![ \n]).+)*)", text, flags=re.MULTILINE)
        text = raised[0] if raised else text
    return text.strip()


# --- checks before the first minute is spent ------------------------------------------------------------------------


def check_plan(
    patch_size: Sequence[int],
    strides: Sequence[Sequence[int] | int],
    kernel_size: Sequence[Sequence[int] | int],
    filters: Sequence[int],
    spatial_dims: int,
    class_names: Sequence[str],
    label_values: Sequence[int],
    mirror_axes: Sequence[int],
    mirror_pairs: Sequence[Sequence[str]] | None,
) -> None:
    """Refuse facts of a task that contradict each other.

    Args:
        patch_size: voxels.
        strides: one for each level of the network, the first 1.
        kernel_size: one for each level.
        filters: one for each level.
        spatial_dims: 2 or 3.
        class_names: background first.
        label_values: on disk, one for each class name, background first.
        mirror_axes: that are flipped.
        mirror_pairs: classes that change places along axis 0.

    Raises:
        ValueError: naming the facts that do not fit.
    """
    if not len(strides) == len(kernel_size) == len(filters):
        raise ValueError(
            f"strides, kernel_size and filters need one entry for each level of the network, got {len(strides)}, "
            f"{len(kernel_size)} and {len(filters)}."
        )
    if len(patch_size) != spatial_dims:
        raise ValueError(f"patch_size must have {spatial_dims} entries (spatial_dims), got {list(patch_size)}.")
    total = np.prod([np.broadcast_to(stride, spatial_dims) for stride in strides], axis=0)
    if any(size % step for size, step in zip(patch_size, total)):
        raise ValueError(f"patch_size {list(patch_size)} must be a multiple of the strides' product {total.tolist()}.")
    if len(class_names) != len(label_values) or len(set(label_values)) != len(label_values):
        raise ValueError(
            f"label_values needs one value for each of the {len(class_names)} class names, each once, "
            f"got {list(label_values)}."
        )
    mirror_images(mirror_axes, spatial_dims)
    pair_indices(class_names, mirror_pairs, mirror_axes)


def check_checkpoint(path: str, network: torch.nn.Module) -> None:
    """Refuse weights that are not there or belong to another network, before a scan is read.

    Args:
        path: state dictionary written by ``torch.save``.
        network: what it shall be loaded into.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when layers are missing, additional or of other sizes; the first of each is named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"checkpoint {path!r} is not there; train first, or name one with --checkpoint (or the run's task.yaml)."
        )
    refuse_other_network(path, torch.load(path, map_location="cpu", weights_only=True), network)


# --- the folder of a run ---------------------------------------------------------------------------------------------


def open_run(output_dir: str, resume: bool = False) -> None:
    """Make the folder of a training run, write down what is run, and keep its log there.

    ``config.yaml`` is the merged configuration with what the command line changed; training with it again gives the
    same model. ``task.yaml`` holds the task's facts, the split and the absolute path of the weights, so
    ``--config_file "['configs/inference.json', '<output_dir>/task.yaml']"`` needs no other knob. Of several processes
    the first one writes.

    Args:
        output_dir: the folder.
        resume: whether it may hold a run already, which then goes on.

    Raises:
        FileExistsError: when the folder holds a run and ``resume`` is false, or another command is writing it.
        FileNotFoundError: when ``resume`` is true and there is nothing to go on from.
        ValueError: when ``resume`` is true and the run was started with another task or split.
        RuntimeError: when it is not called from a bundle workflow.
    """
    folder = Path(output_dir)
    if not resume and any((folder / name).exists() for name in (WEIGHTS, LAST, PREVIOUS)):
        raise FileExistsError(f"{output_dir!r} holds a run already; take another --output_dir, or --resume True.")
    parser = running_workflow().parser
    merged = cast(dict[str, Any], parser.config)
    config = {key: value for key, value in merged.items() if key != ConfigParser.meta_key}
    facts = {key: config[key] for key in (*FACTS, *SPLIT) if key in config}
    # as values: evaluation and inference need not have what an expression of training is made of
    for key in [key for key, value in facts.items() if isinstance(value, str) and value.startswith("$")]:
        facts[key] = parser.get_parsed_content(key)
    if "network_def" in config:
        facts["network_def"] = _without_download(config["network_def"])
    facts = _plain(facts)
    facts["checkpoint"] = str((folder / WEIGHTS).resolve())
    if facts.get("group_table"):
        facts["group_table"] = str(Path(facts["group_table"]).resolve())
    if resume:
        _refuse_other_facts(folder, facts)
    if not is_first():
        return
    hold_folder(folder)
    # whoever trains with it again starts anew
    write_yaml(folder / CONFIG, {**config, "resume": False}, "# The configuration of this run, merged and as run.")
    write_yaml(
        folder / TASK, facts, "# Facts of the task and of this run: lay it over evaluate.yaml or inference.json."
    )
    log = logging.FileHandler(folder / _LOG, encoding="utf-8")
    log.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    logging.getLogger().addHandler(log)


def _without_download(network_def: Any) -> Any:
    """A network whose weights are in the run, and that needs no others to begin with.

    What an expression builds (``$...``) is left as it is.
    """
    if isinstance(network_def, Mapping):
        return {
            key: False if key == "pretrained" and value is True else _without_download(value)
            for key, value in network_def.items()
        }
    return [_without_download(item) for item in network_def] if isinstance(network_def, list) else network_def


def _refuse_other_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    if not (folder / TASK).is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no run to resume; start without --resume.")
    before = yaml.safe_load((folder / TASK).read_text(encoding="utf-8"))
    # a folder that was moved or copied has its weights elsewhere
    before["checkpoint"] = facts["checkpoint"]
    changed = [key for key in {**before, **facts} if before.get(key) != facts.get(key)]
    if changed:
        raise ValueError(
            f"{str(folder)!r} was started with another {', '.join(changed)}; resume it with the same task and split."
        )


def running_config() -> dict[str, Any]:
    """The merged configuration of the workflow that is running.

    Raises:
        RuntimeError: when it is not called from a bundle workflow.
    """
    return dict(cast(dict[str, Any], running_workflow().parser.config))


def running_workflow() -> ConfigWorkflow:
    """The workflow that is running; MONAI hands a step of it no other way to the configuration.

    Raises:
        RuntimeError: when it is not called from a bundle workflow.
    """
    frame = inspect.currentframe()
    while frame is not None:
        workflow = frame.f_locals.get("self")
        if isinstance(workflow, ConfigWorkflow):
            return workflow
        frame = frame.f_back
    raise RuntimeError("this must be called by an expression of a bundle's config.")


def write_yaml(path: Path, content: Mapping[str, Any], heading: str) -> None:
    """Write a configuration below a line of comment.

    Args:
        path: of the file.
        content: values that YAML knows; others become their text.
        heading: the comment.
    """
    text = yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True, width=120)
    replace(path, lambda beside: beside.write_text(f"{heading}\n{text}", encoding="utf-8"))


def _plain(value: Any) -> Any:
    """Values that YAML knows; objects that a Python caller put into the configuration become their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)

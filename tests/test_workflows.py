"""How a run behaves: names, folders, causes of failure, and going on after a stop."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
import yaml
from monai.bundle import ConfigWorkflow

from monai_skelrec import workflows
from monai_skelrec.sides import tell_sides

CONFIG = """
epochs: 10
resume: false
learning_rate: 0.01
patch_size: [8, 8]
task: vessels
train: {crop: 1}
nothing: null
amp: $torch.cuda.is_available()
fold: 0
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return str(path)


# --- names on the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ["--epochs", "5"],
        ["--epochs=5", "--task", "roads", "--resume", "True"],
        ["--resume"],
        ["--train::crop", "2", "--train#crop=3"],
        ["--patch_size", "[4, 4]", "--learning-rate", "0.1"],
        ["--nothing", "anything"],
        ["--epochs", "$2 * 3"],
        ["--nothing", "$None", "--fold", "all"],
        ["--patch_size", "[small,large]"],
        ["--meta_file", "m.json", "--tracking", "mlflow", "--experiment_name", "e"],
    ],
)
def test_known_names_pass(config, given):
    workflows.refuse_unknown_names(["run", "training", "--config_file", config, *given])


@pytest.mark.parametrize(
    "given, message",
    [
        (["--epoch", "5"], "--epoch is no name of this bundle; did you mean --epochs?"),
        (["--epoch=5"], "--epoch is no name of this bundle; did you mean --epochs?"),
        (["--trian::crop", "2"], "--trian::crop is no name of this bundle; did you mean --train?"),
        (["--zzz"], "--zzz is no name of this bundle; see the knobs in README.md."),
        (["--experiment_name", "e"], "--experiment_name is no name of this bundle"),
    ],
)
def test_unknown_name_is_refused_with_near_misses(config, given, message):
    with pytest.raises(ValueError) as error:
        workflows.refuse_unknown_names(["run", "training", "--config_file", config, *given])
    assert message in str(error.value)


@pytest.mark.parametrize(
    "given, message",
    [
        (["--resume", "true"], "--resume must be True or False with a capital letter, got 'true'."),
        (["--amp", "false"], "--amp must be True or False with a capital letter, got 'false'."),
        (["--resume", "1"], "--resume must be True or False, got 1."),
        (["--epochs", "ten"], "--epochs must be like 10, got 'ten'."),
        (["--epochs", "[1, 2]"], r"--epochs must be like 10, got \[1, 2\]."),
        (["--patch_size", "large"], r"--patch_size must be like \[8, 8\], got 'large'."),
        (["--patch_size", "96"], r"--patch_size must be like \[8, 8\], got 96."),
        (["--nothing", "None"], r"--nothing None would be ignored; write --nothing '\$None'."),
    ],
)
def test_value_of_another_kind_is_refused(config, given, message):
    with pytest.raises(ValueError, match=message):
        workflows.refuse_unknown_names(["run", "--config_file", config, *given])


def test_names_of_an_args_file_are_checked_too(config, tmp_path):
    arguments = tmp_path / "args.yaml"
    arguments.write_text(f"config_file: {config}\nepoch: 3\n")
    with pytest.raises(ValueError, match="--epoch is no name"):
        workflows.refuse_unknown_names(["run", "--args_file", str(arguments)])


def test_names_of_every_laid_over_file_are_known(config, tmp_path):
    second = tmp_path / "second.yaml"
    second.write_text("extra: 1\n")
    files = str([config, str(second)])
    workflows.refuse_unknown_names(["run", "training", "--config_file", files, "--extra", "2"])


def test_a_process_that_is_no_bundle_run_is_left_alone():
    workflows.refuse_unknown_names()  # pytest's own arguments
    workflows.refuse_unknown_names(["download", "--nonsense"])
    workflows.refuse_unknown_names(["run", "--nonsense"])  # MONAI itself asks for the config file


# --- causes ----------------------------------------------------------------------------------------------------------


def test_root_cause_is_that_of_the_chain():
    try:
        try:
            raise ValueError("the scan is empty")
        except ValueError as inner:
            raise RuntimeError("Failed to instantiate component") from inner
    except RuntimeError as error:
        assert workflows.root_cause(error) == "the scan is empty"


def test_root_cause_is_found_in_a_loader_process():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            try:
                raise ValueError("a.nii.gz holds 3 NaN\nand more")
            except ValueError as inner:
                raise RuntimeError("applying transform") from inner

    with pytest.raises(RuntimeError) as error:
        list(torch.utils.data.DataLoader(Broken(), num_workers=1))
    assert workflows.root_cause(error.value) == "a.nii.gz holds 3 NaN\nand more"


def test_error_without_words_is_named_by_its_kind():
    assert workflows.root_cause(MemoryError()) == "MemoryError"


def test_last_line_printed_is_the_cause(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    workflows.show_root_cause()
    error = RuntimeError("outer")
    error.__cause__ = ValueError("inner")
    sys.excepthook(RuntimeError, error, None)
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1] == "Error: inner"
    assert "RuntimeError: outer" in printed
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert "Error:" not in capsys.readouterr().err


# --- facts and weights that do not fit -------------------------------------------------------------------------------

PLAN = {
    "patch_size": [16, 16],
    "strides": [1, 2, [2, 2]],
    "kernel_size": [3, 3, 3],
    "filters": [4, 8, 16],
    "spatial_dims": 2,
    "class_names": ["background", "road"],
    "label_values": [0, 255],
    "mirror_axes": [0, 1],
    "mirror_pairs": [["R-ICA", "L-ICA"]],
}


def test_plan_that_fits_passes():
    workflows.check_plan(**PLAN)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"filters": [4, 8]}, "need one entry for each level of the network, got 3, 3 and 2"),
        ({"patch_size": [16, 16, 16]}, r"patch_size must have 2 entries \(spatial_dims\), got \[16, 16, 16\]"),
        ({"patch_size": [16, 18]}, r"patch_size \[16, 18\] must be a multiple of the strides' product \[4, 4\]"),
        ({"label_values": [0, 1, 2]}, "one value for each of the 2 class names, each once"),
        ({"label_values": [1, 1]}, "one value for each of the 2 class names, each once"),
        ({"mirror_axes": [0, 1, 2]}, r"mirror_axes must be axes 0 to 1, each once, got \[0, 1, 2\]"),
        ({"mirror_axes": [-1]}, r"mirror_axes must be axes 0 to 1, each once, got \[-1\]"),
        ({"mirror_pairs": [["road", "path"]]}, r"got \['road', 'path'\]; the classes are background, road"),
    ],
)
def test_plan_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        workflows.check_plan(**PLAN | change)


def test_pairs_are_looked_at_only_where_sides_are_mirrored():
    half = {"class_names": ["background", "R-ICA"]}
    workflows.check_plan(**PLAN | half | {"mirror_axes": [1]})
    with pytest.raises(ValueError, match="Name theirs, or none with --mirror_pairs"):
        workflows.check_plan(**PLAN | half)
    workflows.check_plan(**PLAN | half | {"mirror_pairs": None})


def test_classes_that_a_mirror_image_would_mix_up_are_named(caplog):
    names = ["background", "left lung", "right lung", "aorta"]
    caplog.set_level("INFO")
    tell_sides(names, [1], None)
    assert caplog.messages == []
    tell_sides(names, [0, 1], [["left lung", "right lung"]])
    assert caplog.messages == ["Mirrored from side to side; classes that change places then: left lung and right lung."]
    caplog.clear()
    tell_sides(names, [0], None)
    first, message = caplog.messages
    assert first.endswith("change places then: none.")
    assert "where left lung, right lung keep their names" in message and "name them in mirror_pairs" in message


def test_checkpoint_of_another_network_is_refused(tmp_path):
    path = str(tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match="model.pt' is not there; train first, or name one with --checkpoint"):
        workflows.check_checkpoint(path, torch.nn.Linear(2, 3))
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)
    workflows.check_checkpoint(path, torch.nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"another network .*it has another size of weight \(and 1 more\)"):
        workflows.check_checkpoint(path, torch.nn.Linear(2, 4))
    with pytest.raises(ValueError, match="it has besides bias"):
        workflows.check_checkpoint(path, torch.nn.Linear(2, 3, bias=False))
    with pytest.raises(ValueError, match="it lacks 0.weight.*it has besides weight"):
        workflows.check_checkpoint(path, torch.nn.Sequential(torch.nn.Linear(2, 3)))


# --- the folder of a run ---------------------------------------------------------------------------------------------


def test_folder_that_holds_a_run_is_refused_without_resume(tmp_path):
    (tmp_path / "last.pt").touch()
    with pytest.raises(FileExistsError, match="holds a run already; take another --output_dir, or --resume True"):
        workflows.open_run(str(tmp_path))


def test_open_run_outside_a_workflow_says_so(tmp_path):
    with pytest.raises(RuntimeError, match="must be called by an expression of a bundle's config"):
        workflows.open_run(str(tmp_path / "run"))


def run_workflow(tmp_path, **knobs):
    """A bundle whose only step is to open its run."""
    config = tmp_path / "train.yaml"
    config.write_text(
        "imports: [$import monai_skelrec.workflows as workflows]\n"
        "task: vessels\nfold: 0\nepochs: 10\nresume: false\ngroup_table: null\ncheckpoint: models/model.pt\n"
        "training: ['$workflows.open_run(@folder, @resume)']\nrun: '%training'\n"
    )
    workflow = ConfigWorkflow(
        str(config), logging_file=False, workflow_type="train", folder=str(tmp_path / "run"), **knobs
    )
    workflow.initialize()
    workflow.run()
    return tmp_path / "run"


def test_open_run_writes_what_is_run(tmp_path):
    run = run_workflow(tmp_path, epochs=3, device=torch.device("cpu"))
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["epochs"], written["device"], written["task"]) == (3, "cpu", "vessels")
    assert yaml.safe_load((run / "task.yaml").read_text()) == {
        "task": "vessels",
        "checkpoint": str((run / "model.pt").resolve()),
        "fold": 0,
        "group_table": None,
    }
    assert sorted(path.name for path in run.iterdir()) == [".lock", "config.yaml", "task.yaml", "train.log"]
    logging.getLogger("somewhere").warning("a word for the log")
    assert "a word for the log" in (run / "train.log").read_text()


def test_run_that_failed_before_its_first_checkpoint_can_be_started_again(tmp_path):
    run_workflow(tmp_path, epochs=3)
    run = run_workflow(tmp_path, epochs=4)
    assert yaml.safe_load((run / "config.yaml").read_text())["epochs"] == 4


def test_group_table_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = run_workflow(tmp_path, group_table="groups.csv")
    assert yaml.safe_load((run / "task.yaml").read_text())["group_table"] == str(tmp_path / "groups.csv")


def test_resuming_with_another_split_is_refused_and_changes_nothing(tmp_path):
    run = run_workflow(tmp_path)
    (run / "last.pt").touch()
    before = (run / "task.yaml").read_text()
    with pytest.raises(RuntimeError) as error:
        run_workflow(tmp_path, resume=True, fold=1)
    assert "was started with another fold; resume it with the same task and split" in workflows.root_cause(error.value)
    assert (run / "task.yaml").read_text() == before
    run_workflow(tmp_path, resume=True, epochs=20)
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert (written["epochs"], written["resume"]) == (20, False)


def test_run_that_was_moved_goes_on_and_knows_its_new_place(tmp_path):
    (tmp_path / "new").mkdir()
    run = run_workflow(tmp_path)
    (run / "last.pt").touch()
    run.rename(tmp_path / "new" / "run")
    moved = run_workflow(tmp_path / "new", resume=True)
    assert yaml.safe_load((moved / "task.yaml").read_text())["checkpoint"] == str((moved / "model.pt").resolve())

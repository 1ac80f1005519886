"""Every command in the README and on the bundle's page is true."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import monai.bundle
import pytest
from monai.bundle import ConfigParser

from monai_skelrec import write_phantoms
from monai_skelrec.workflows import refuse_unknown_names

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": ROOT,
    "bundle/docs/README.md": ROOT / "bundle",
    "bundle/docs/scale.md": ROOT / "bundle",
}  # page: where its commands are started
SMALL = {
    "epochs": 1,
    "iterations_per_epoch": 1,
    "val_interval": 1,
    "num_workers": 0,
    "overlap": 0.1,
    "folds": 2,
    "spacing": "$None",
    "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]],
    "kernel_size": [[3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "filters": [4, 6, 8],
    "patch_size": [32, 32, 32],
}


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def commands(page):
    """Each shell command as a list of words, continued lines joined."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [
        words
        for words in (shlex.split(line.replace("<", "").replace(">", ""), comments=True) for line in lines)
        if words
    ]


def bundle_runs():
    return [
        pytest.param(page, words, id=f"{page}: {' '.join(words[4:])[:60]}")
        for page in PAGES
        for words in commands(page)
        if words[:4] == ["python", "-m", "monai.bundle", "run"]
    ]


@pytest.mark.parametrize("page, words", bundle_runs())
def test_bundle_command_names_files_and_knobs_that_exist(page, words, monkeypatch, tmp_path):
    monkeypatch.chdir(PAGES[page])
    words = list(words[3:])
    # the task.yaml of a run is not there yet; it holds facts of the base, so the base alone defines them
    at = words.index("--config_file") + 1
    files = [file for file in re.findall(r"[^'\[\], ]+", words[at]) if not file.startswith("run/")]
    words[at] = str(files)
    refuse_unknown_names(words)
    assert words[1] in ConfigParser.load_config_files(files)


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, flags=re.MULTILINE), words


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


def test_python_example_runs(capsys):
    (example,) = blocks("README.md", "python")
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"loss \d\.\d\d, centreline Dice 0\.\d+", capsys.readouterr().out.strip())


def test_the_three_commands_work_one_after_the_other(tmp_path, monkeypatch):
    """As written, with the names in angle brackets filled in, on phantoms and a budget of one step."""
    monkeypatch.chdir(ROOT)
    write_phantoms(str(tmp_path / "phantoms"), training=2, test=1)
    places = {
        "<topcow>": tmp_path / "phantoms" / "train",
        "<new scans>": tmp_path / "phantoms" / "test" / "imagesTr",
        "<run>": tmp_path / "run",
        "<evaluation>": tmp_path / "evaluation",
        "<label maps>": tmp_path / "label maps",
    }
    text = "\n".join(block for block in blocks("README.md", "bash") if "run training" in block).replace("\\\n", " ")
    for line in text.splitlines():
        for name, path in places.items():
            line = line.replace(name, str(path).replace(" ", "\\ ") if "'" + name not in line else str(path))
        words = shlex.split(line)
        knobs = dict(zip([word.removeprefix("--") for word in words[5::2]], words[6::2]))
        files = re.findall(r"[^'\[\],]+\.(?:yaml|json)", knobs.pop("config_file"))
        small = SMALL if words[4] == "training" else {}
        monai.bundle.run(run_id=words[4], config_file=[file.strip() for file in files], **knobs, **small)
    assert len(list((tmp_path / "label maps").iterdir())) == 2
    assert (tmp_path / "evaluation" / "scores.csv").is_file()
    assert os.listdir(tmp_path / "evaluation" / "pictures")


def test_every_module_has_its_place_in_the_readme():
    steps = (ROOT / "README.md").read_text().split("## How it is built")[1].split("\n## ")[0]
    modules = {path.stem for path in (ROOT / "monai_skelrec").iterdir() if path.suffix == ".py" or path.is_dir()}
    named = set(re.findall(r"`(\w+)`", steps))
    assert modules - {"__init__", "__pycache__"} == named

# make quickstart   phantoms -> training -> label maps of unseen scans -> scores and a picture (minutes on a laptop)
# make test         the whole suite
# make check        format, lint and types
# make bench        what the loss costs beside others, on this machine
# make bundle TASK=toothfairy2 RUN=<run folder>   the zipped bundle of a task, with the weights of a training run
#
# Every target works from nothing but Python 3.10 or newer: it makes .venv and installs the tested versions into it.

PYTHON ?= python3
# what the quickstart segments: circle_of_willis (13 arteries) or jaw (two nerve canals in a jawbone)
PHANTOM ?= circle_of_willis
QUICKSTART ?= quickstart
# what is bundled: a task, and the folder of the training run whose weights go in (none: those in bundle/models)
TASK ?= topcow
RUN ?=

VENV := .venv
BIN := $(VENV)/bin
MONAI := $(BIN)/python -m monai.bundle run
CONFIGS := bundle/configs
SOURCES := monai_skelrec tests
OUT := $(QUICKSTART)/$(PHANTOM)
$(if $(filter $(PHANTOM),circle_of_willis jaw),,$(error PHANTOM must be circle_of_willis or jaw, got $(PHANTOM)))
TASK_circle_of_willis :=
TASK_jaw := '$(CONFIGS)/toothfairy2.yaml',
TRAIN := "['$(CONFIGS)/train.yaml', $(TASK_$(PHANTOM)) '$(CONFIGS)/phantom.yaml']"
RUN_OF = "['$(CONFIGS)/$(1)', '$(OUT)/run/task.yaml']"

.PHONY: quickstart test check format bench bundle clean

quickstart: $(VENV)/installed
	rm -rf $(OUT)
	$(MONAI) phantoms --config_file $(TRAIN) --phantom_dir $(OUT)/phantoms
	$(MONAI) training --config_file $(TRAIN) --dataset_dir $(OUT)/phantoms/train --output_dir $(OUT)/run
	$(MONAI) inferring --config_file $(call RUN_OF,inference.json) --dataset_dir $(OUT)/phantoms/test/imagesTr --output_dir $(OUT)/predictions
	$(MONAI) evaluating --config_file $(call RUN_OF,evaluate.yaml) --dataset_dir $(OUT)/phantoms/test --fold all --output_dir $(OUT)/evaluation

test: $(VENV)/installed
	$(BIN)/python -m pytest -q -n 2

check: $(VENV)/installed
	$(BIN)/isort --check-only --quiet $(SOURCES)
	$(BIN)/black --check --quiet --line-length 120 --skip-magic-trailing-comma $(SOURCES)
	$(BIN)/flake8 $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/isort --quiet $(SOURCES)
	$(BIN)/black --quiet --line-length 120 --skip-magic-trailing-comma $(SOURCES)

bench: $(VENV)/installed
	$(MONAI) benchmarking --config_file $(CONFIGS)/benchmark.yaml

bundle: $(VENV)/installed
	$(MONAI) packaging --config_file $(CONFIGS)/packaging.yaml --task $(TASK) $(if $(RUN),--run_dir $(RUN))

clean:
	rm -rf $(VENV) $(QUICKSTART)

# torch first and alone: the pinned version is looked up before another package's range can ask for another build
$(VENV)/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[report,tensorboard,test,check]"
	touch $@

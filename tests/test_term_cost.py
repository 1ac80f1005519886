"""Steps with and without the term are told apart, pair by pair; times themselves are not tested."""

from __future__ import annotations

import time

import monai.bundle
import numpy as np
import pytest
import torch
from bundle_data import SMALL_BUDGET, SMALL_NETWORK, files_of, write_data
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandFlipd

from monai_skelrec.term_cost import TermCost, measure_term, write_term_cost


def test_the_ratio_is_of_all_pairs_and_its_interval_holds_it():
    cost = TermCost(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 1.0, 2.0, 4.0]))
    assert cost.ratio == 10 / 8
    low, high = cost.interval()
    assert 1 <= low < cost.ratio < high <= 2
    # pairs that agree leave nothing open
    assert TermCost(np.full(5, 3.0), np.full(5, 2.0)).interval() == (1.5, 1.5)


def test_a_loss_that_takes_time_is_found_and_both_see_the_same_patches(tmp_path):
    seen = {"with": [], "without": []}

    def loss(name, seconds):
        def value(pred, target):
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass
            seen[name].append(target.clone())
            return (pred - target).square().mean()

        return value

    data = [{"image": torch.rand(1, 8), "label": torch.rand(1, 8)} for _ in range(4)]
    network = torch.nn.Linear(8, 8)
    before = network.weight.detach().clone()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    trainer = SupervisedTrainer(torch.device("cpu"), 1, DataLoader(data), network, optimizer, loss("with", 0.05))
    flip = Compose([RandFlipd(["image", "label"], prob=0.5)])
    cost = measure_term(trainer, Dataset(data), flip, flip, loss("without", 0), batch_size=2, rounds=3)
    assert cost.ratio > 1 and cost.interval()[0] > 1
    assert len(cost.with_term) == 3
    for one, other in zip(seen["with"], seen["without"], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(before, network.weight)
    assert "3 pairs" in write_term_cost(cost, tmp_path)
    assert len((tmp_path / "term_cost.csv").read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="comparing steps needs at least 2 rounds, got 1"):
        measure_term(trainer, Dataset(data), flip, flip, loss("without", 0), batch_size=2, rounds=1)


def test_bundle_command_writes_the_pairs_from_trained_weights(tmp_path, capsys):
    data = str(write_data("topcow", tmp_path / "data"))
    budget = {**SMALL_BUDGET, **SMALL_NETWORK, "iterations_per_epoch": 4, "spacing": [1.0, 1.0, 1.0]}
    monai.bundle.run(
        run_id="training",
        config_file=files_of("train.yaml"),
        dataset_dir=data,
        output_dir=str(tmp_path / "run"),
        **budget,
    )
    capsys.readouterr()

    def weigh(weights):
        monai.bundle.run(
            run_id="weighing",
            config_file=files_of("train.yaml", "pieces.yaml", "profiling.yaml"),
            dataset_dir=data,
            output_dir=str(tmp_path / "cost"),
            **budget,
            rounds=2,
            start_from=str(tmp_path / "run" / weights),
        )

    weigh("last.pt")
    printed = capsys.readouterr().out
    assert "s with the whole loss and" in printed and "2 pairs" in printed
    assert len((tmp_path / "cost" / "term_cost.csv").read_text().splitlines()) == 3
    with pytest.raises(Exception) as caught:
        weigh("nothing.pt")
    assert "is not there; name model.pt or last.pt of a run" in str(caught.value.__cause__ or caught.value)

"""Which patch is drawn depends on seed, epoch and place alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandShiftIntensity

from monai_skelrec import draws
from monai_skelrec.draws import BatchDraws, Draw, DrawnDataset


def as_rank(monkeypatch, rank, processes):
    monkeypatch.setattr(draws.idist, "get_rank", lambda: rank)
    monkeypatch.setattr(draws.idist, "get_world_size", lambda: processes)


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_is_drawn_again_alike_and_another_is_not():
    first, second = BatchDraws(20, 6, 4, seed=3), BatchDraws(20, 6, 4, seed=3)
    assert epoch_of(first, 5) == epoch_of(second, 5)
    assert epoch_of(first, 5) != epoch_of(first, 6)
    assert epoch_of(first, 2) != epoch_of(BatchDraws(20, 6, 4, seed=2), 3)
    assert len(first) == 6 and [len(batch) for batch in first] == [4] * 6


def test_cases_are_drawn_with_replacement_and_equally_often():
    drawn = [draw.case for batch in BatchDraws(5, 500, 8, seed=0) for draw in batch]
    counts = np.bincount(drawn, minlength=5)
    # binomial: 800 expected, standard deviation 25
    assert len(counts) == 5 and (abs(counts - 800) < 130).all()
    assert any(len({draw.case for draw in batch}) < 5 for batch in BatchDraws(5, 10, 5, seed=0))


def test_no_two_patches_share_their_random_numbers():
    seeds = [draw.seed for batch in BatchDraws(5, 250, 2, seed=0) for draw in batch]
    assert len(set(seeds)) == 500


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_draw_what_one_draws(processes, monkeypatch):
    whole = epoch_of(BatchDraws(20, 6, 4, seed=3), 5)
    shares = []
    for rank in range(processes):
        as_rank(monkeypatch, rank, processes)
        shares.append(epoch_of(BatchDraws(20, 6, 4, seed=3), 5))
    assert [sum(batches, []) for batches in zip(*shares)] == whole


def test_batch_that_cannot_be_shared_is_refused(monkeypatch):
    as_rank(monkeypatch, 0, 2)
    with pytest.raises(ValueError, match="2 processes cannot share a batch of 3 patches equally: set --batch_size"):
        BatchDraws(20, 6, 3, seed=0)


def test_no_case_to_draw_from_is_refused():
    with pytest.raises(ValueError, match="no cases to draw from"):
        BatchDraws(0, 6, 2, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_follow_the_draw_whatever_the_loading(workers):
    shift = RandShiftIntensity(offsets=1.0, prob=1.0)
    cases = [torch.zeros(1, 1) for _ in range(4)]
    sampler = BatchDraws(4, 3, 2, seed=1)
    loader = DataLoader(
        DrawnDataset(Dataset(cases, Compose([shift]))),
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    sampler.set_epoch(0)
    list(loader)  # leaves random states behind
    sampler.set_epoch(1)
    seen = torch.cat(list(loader)).flatten().tolist()
    expected = []
    for draw in (draw for batch in sampler for draw in batch):
        alone = Compose([RandShiftIntensity(offsets=1.0, prob=1.0)]).set_random_state(seed=draw.seed)
        expected.append(float(alone(cases[draw.case])))
    assert seen == expected and len(set(seen)) == 6


def test_dataset_has_the_length_of_its_cases():
    dataset = DrawnDataset(Dataset([torch.zeros(1)] * 3, Compose([])))
    assert len(dataset) == 3 and torch.equal(dataset[Draw(2, 0)], torch.zeros(1))

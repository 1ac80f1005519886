"""Which patch is drawn depends on seed, epoch and place alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, RandShiftIntensity

from monai_skelrec import RandPatchd, draws
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


@pytest.mark.parametrize("knobs", [{}, {"balanced_share": 0.5, "classes": lambda: np.eye(20, 5, dtype=bool)}])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_draw_what_one_draws(processes, knobs, monkeypatch):
    whole = epoch_of(BatchDraws(20, 6, 4, seed=3, **knobs), 5)
    shares = []
    for rank in range(processes):
        as_rank(monkeypatch, rank, processes)
        shares.append(epoch_of(BatchDraws(20, 6, 4, seed=3, **knobs), 5))
    assert [sum(batches, []) for batches in zip(*shares)] == whole


def test_batch_that_cannot_be_shared_is_refused(monkeypatch):
    as_rank(monkeypatch, 0, 2)
    with pytest.raises(ValueError, match="2 processes cannot share a batch of 3 patches equally: set --batch_size"):
        BatchDraws(20, 6, 3, seed=0)


def test_no_case_to_draw_from_is_refused():
    with pytest.raises(ValueError, match="no cases to draw from"):
        BatchDraws(0, 6, 2, seed=0)


def one_rare_class():
    """Four scans of two common classes, one of which has class 3 as well; class 4 is in none."""
    holds = np.ones((4, 5), bool)
    holds[:, 3] = [False, False, True, False]
    holds[:, 4] = False
    return holds


def test_balanced_patches_want_every_class_as_often_and_from_a_scan_that_has_it():
    drawn = sum(BatchDraws(4, 300, 4, seed=0, balanced_share=0.5, classes=one_rare_class), [])
    wanted = np.asarray([draw.wanted or 0 for draw in drawn])
    # binomial: 600 are balanced, 200 for each class, standard deviations 17 and 13
    assert abs((wanted > 0).sum() - 600) < 90
    assert (abs(np.bincount(wanted, minlength=5)[1:] - [200, 200, 200, 0]) < 70).all()
    assert {draw.case for draw in drawn if draw.wanted == 3} == {2}
    assert {draw.case for draw in drawn if draw.wanted == 1} == {0, 1, 2, 3}
    # the other half is drawn as without it: 150 of each case, standard deviation 11
    assert (abs(np.bincount([draw.case for draw in drawn if draw.wanted is None]) - 150) < 50).all()


def test_without_a_share_nothing_is_looked_up_and_nothing_is_drawn_differently():
    def unasked():
        raise AssertionError("loads every scan")

    assert epoch_of(BatchDraws(20, 6, 4, 3, 0.0, unasked), 5) == epoch_of(BatchDraws(20, 6, 4, 3), 5)


def test_scans_without_any_class_are_drawn_as_they_are():
    empty = BatchDraws(4, 6, 4, 3, balanced_share=1.0, classes=lambda: np.eye(1, 5, dtype=bool).repeat(4, 0))
    assert epoch_of(empty, 5) == epoch_of(BatchDraws(4, 6, 4, 3), 5)


def test_wrong_shares_are_refused():
    with pytest.raises(ValueError, match="balanced_share must be within 0 and 1, got 1.5"):
        BatchDraws(20, 6, 2, seed=0, balanced_share=1.5, classes=one_rare_class)
    with pytest.raises(ValueError, match="balanced_share needs to know which classes each case holds: give classes"):
        BatchDraws(20, 6, 2, seed=0, balanced_share=0.5)
    with pytest.raises(ValueError, match="a row for each of 20 cases, got 4"):
        list(BatchDraws(20, 6, 2, seed=0, balanced_share=0.5, classes=one_rare_class))


def test_patch_is_centred_on_the_class_that_a_draw_wants_and_only_that_one():
    label = torch.zeros(1, 9, 9, 9, dtype=torch.uint8)
    label[0, 1, 4, 4], label[0, 7, 4, 4] = 1, 2
    scan = {"label": label, "where": [[0], [121], [607], []]}
    patch = RandPatchd("label", [3, 3, 3], "where", foreground_share=0.0, mode="nearest")
    dataset = DrawnDataset(Dataset([scan], Compose([patch])))
    for seed in range(20):
        assert [int(dataset[Draw(0, seed, wanted)]["label"][0, 1, 1, 1]) for wanted in (1, 2)] == [1, 2]
    # not there, or nothing wanted: drawn as before
    free = [dataset[Draw(0, seed, None)]["label"] for seed in range(20)]
    assert all(torch.equal(dataset[Draw(0, seed, 3)]["label"], free[seed]) for seed in range(20))
    assert any(not drawn.any() for drawn in free)
    assert patch.wanted is None  # the step may serve another pipeline too


@pytest.mark.parametrize("steps", [[RandPatchd("label", [3, 3, 3], mode="nearest")], [RandShiftIntensity(1.0)]])
def test_class_that_no_step_can_centre_on_is_refused(steps):
    dataset = DrawnDataset(Dataset([{"label": torch.zeros(1, 9, 9, 9)}], Compose(steps)))
    with pytest.raises(ValueError, match="it needs RandPatchd with indices_key, as a step of its own"):
        dataset[Draw(0, 0, 1)]


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

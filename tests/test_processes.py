"""Who does what among several processes; what they do together is in test_distributed.py."""

from __future__ import annotations

import pytest
import torch

from monai_skelrec import processes


def as_rank(monkeypatch, rank, count):
    monkeypatch.setattr(processes.idist, "get_rank", lambda: rank)
    monkeypatch.setattr(processes.idist, "get_world_size", lambda: count)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_the_list_in_its_order_and_differ_by_one_at_most(count, monkeypatch):
    shares = []
    for rank in range(count):
        as_rank(monkeypatch, rank, count)
        shares.append(processes.own_share("abcdefg"))
    assert sum(shares, []) == list("abcdefg")
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_more_processes_than_cases_are_refused(monkeypatch):
    as_rank(monkeypatch, 0, 4)
    with pytest.raises(ValueError, match=r"4 processes cannot share 3 case\(s\): start at most 3"):
        processes.own_share("abc")


def test_process_that_torchrun_did_not_start_is_told_how(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="several processes are started by torchrun: torchrun --standalone"):
        processes.join("cpu")


def test_single_process_is_the_first_and_averages_nothing():
    assert processes.is_first()
    assert torch.equal(processes.average(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    processes.wait_for_all()
    processes.leave()


@pytest.mark.parametrize("gpus, rank, expected", [(0, 3, "cpu"), (2, 1, "cuda:1")])
def test_device_is_the_gpu_of_the_local_rank_or_the_cpu(gpus, rank, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    assert str(processes.local_device()) == expected


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"process 3 of this machine, which has 2 GPU\(s\): lower"):
        processes.local_device()

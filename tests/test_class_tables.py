"""Which classes each case holds: whatever the cache, the loading processes and the processes that train."""

from __future__ import annotations

import resource
import subprocess
import sys

import monai.transforms as mt
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, Dataset

from monai_skelrec.caching import cached_dataset
from monai_skelrec.class_tables import ClassTable

LABELS = np.zeros((5, 1, 4, 4, 4), np.uint8)
LABELS[0, 0, 0], LABELS[2, 0, 1], LABELS[2, 0, 2, 2, 2], LABELS[4] = 1, 3, 2, 1
# of each label above; the last has no background
EXPECTED = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0]]


def pipeline():
    return mt.Compose(
        [mt.LoadImaged("label"), mt.ClassesToIndicesd("label", num_classes=4), mt.RandFlipd("label", 1.0)]
    )


@pytest.fixture
def cases(tmp_path):
    for at, label in enumerate(LABELS):
        np.save(tmp_path / f"{at}.npy", label)
    return [{"label": str(tmp_path / f"{at}.npy")} for at in range(len(LABELS))]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("knobs", [{"cache": "none"}, {"cache": "memory", "cache_rate": 0.5}, {"cache": "persistent"}])
def test_classes_are_those_of_the_labels_whatever_the_cache(cases, tmp_path, knobs, workers):
    dataset = cached_dataset(cases, pipeline(), cache_dir=str(tmp_path / "cache"), **knobs)
    table = ClassTable(dataset, "label_cls_indices", workers)
    drawn = torch.get_rng_state()
    np.testing.assert_array_equal(table(), np.asarray(EXPECTED, bool))
    assert table() is table() and torch.equal(torch.get_rng_state(), drawn)
    assert len(list((tmp_path / "cache").glob("*.pt"))) == (5 if knobs["cache"] == "persistent" else 0)


def test_many_cases_do_not_keep_many_files_open():
    cases = [{"label_cls_indices": [[0], [1] if at % 2 else []]} for at in range(150)]
    table = ClassTable(Dataset(cases, mt.Compose([mt.RandFlipd("label", 1.0)])), "label_cls_indices", num_workers=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        assert table()[:, 1].tolist() == [False, True] * 75
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_case_without_indices_is_refused():
    dataset = CacheDataset([{"label": torch.zeros(1, 2, 2)}], mt.Compose([mt.RandFlipd("label", 1.0)]), progress=False)
    with pytest.raises(ValueError, match="needs 'where' of every case: put ClassesToIndicesd before the first random"):
        ClassTable(dataset, "where")()


THREE = """
import ignite.distributed as idist
import monai.transforms as mt
from monai.data import Dataset
from monai_skelrec.class_tables import ClassTable

def look(rank):
    cases = [{"where": [[0], [1], []]}, {"where": [[0], [], [2]]}]
    print(ClassTable(Dataset(cases, mt.Compose([])), "where")().astype(int).tolist(), flush=True)

if __name__ == "__main__":
    with idist.Parallel(backend="gloo", nproc_per_node=3) as parallel:
        parallel.run(look)
"""


def test_three_processes_know_two_cases_all_alike(tmp_path):
    (tmp_path / "three.py").write_text(THREE)
    done = subprocess.run([sys.executable, str(tmp_path / "three.py")], capture_output=True, text=True, timeout=300)
    assert done.stdout.count("[[1, 1, 0], [1, 0, 1]]") == 3, done.stdout + done.stderr

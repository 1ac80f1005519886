"""A cache serves what the pipeline would make now: never what a former config, or a former file, led to."""

from __future__ import annotations

import os
from functools import partial

import monai.transforms as mt
import numpy as np
import pytest
import torch
from bundle_data import TASKS, TASKS_2D, write_data
from monai.bundle import ConfigParser
from monai.data import CacheDataset, Dataset, MetaTensor

from monai_skelrec import RandPatchd, list_cases
from monai_skelrec.caching import FileCacheDataset, cached_dataset
from monai_skelrec.fingerprints import file_state, fingerprint

KEYS = ["image", "label"]


@pytest.fixture
def cases(tmp_path):
    return list_cases("topcow", str(write_data("topcow", tmp_path / "data", count=2)))


def pipeline(spacing=1.0):
    return mt.Compose(
        [
            mt.LoadImaged(KEYS, ensure_channel_first=True),
            mt.Spacingd(KEYS, pixdim=[spacing] * 3, mode=["bilinear", "nearest"]),
            # as a task's intensity is
            mt.Compose([mt.NormalizeIntensityd("image")]),
            mt.CastToTyped("label", dtype=torch.uint8),
            mt.ClassesToIndicesd("label", num_classes=16, max_samples_per_class=100),
            RandPatchd(KEYS, [8, 8, 8], "label_cls_indices"),
        ]
    )


def scan_of(dataset, index=0):
    """What the cache holds of a case."""
    return dataset._cachecheck(dataset.data[index])


def files_in(folder):
    return sorted(path.name for path in folder.glob("*.pt"))


def test_two_runs_of_one_config_share_a_file_and_another_spacing_gets_its_own(cases, tmp_path):
    cache = tmp_path / "cache"
    dataset = cached_dataset(cases, pipeline(), cache_dir=str(cache))
    assert not cache.exists()  # a run that is refused leaves no trace
    first = scan_of(dataset)
    written = files_in(cache)
    assert len(written) == 1
    scan_of(cached_dataset(cases, pipeline(), cache_dir=str(cache)))
    assert files_in(cache) == written
    other = scan_of(cached_dataset(cases, pipeline(spacing=2.0), cache_dir=str(cache)))
    assert len(files_in(cache)) == 2
    assert other["image"].shape != first["image"].shape


def test_a_label_that_is_overwritten_is_read_again(cases, tmp_path):
    dataset = cached_dataset(cases, pipeline(), cache_dir=str(tmp_path / "cache"))
    before = scan_of(dataset)["label"].clone()
    state = os.stat(cases[0]["label"])
    os.replace(cases[1]["label"], cases[0]["label"])
    os.utime(cases[0]["label"], ns=(state.st_atime_ns, state.st_mtime_ns + 1))  # even within one tick of the clock
    after = scan_of(dataset)["label"]
    assert len(files_in(tmp_path / "cache")) == 2
    assert before.shape == after.shape and not torch.equal(before, after)


def test_second_reading_has_the_place_in_space_and_can_be_inverted(cases, tmp_path):
    plain = cached_dataset(cases, pipeline(), cache="none").transform(cases[0], end=5)
    dataset = cached_dataset(cases, pipeline(), cache_dir=str(tmp_path))
    for scan in (scan_of(dataset), scan_of(dataset)):
        for key in KEYS:
            assert isinstance(scan[key], MetaTensor)
            torch.testing.assert_close(scan[key].as_tensor(), plain[key].as_tensor())
            torch.testing.assert_close(scan[key].affine, plain[key].affine)
            assert scan[key].meta["filename_or_obj"] == cases[0][key]
        back = mt.Spacingd("image", pixdim=[1.0] * 3).inverse({"image": scan["image"]})["image"]
        assert back.shape == (1, 36, 40, 32)


@pytest.mark.parametrize("task", TASKS)
def test_headers_of_every_format_survive(task, tmp_path):
    layout = {"topcow_binary": "topcow", "folder_2d": "folder", "cracks": "folder"}.get(task, task)
    dims = 2 if task in TASKS_2D else 3
    found = list_cases(layout, str(write_data(task, tmp_path / "data", count=4)), dims)
    steps = mt.Compose([mt.LoadImaged(KEYS, ensure_channel_first=True, reader="PILReader" if dims == 2 else None)])
    dataset = cached_dataset(found, steps, cache_dir=str(tmp_path / "cache"))
    for index in range(len(found)):
        assert scan_of(dataset, index)["label"].meta["filename_or_obj"] == found[index]["label"]


def test_only_steps_before_the_first_random_one_are_kept(cases, tmp_path):
    for cache, kind in (("none", Dataset), ("memory", CacheDataset), ("persistent", FileCacheDataset)):
        dataset = cached_dataset(cases, pipeline(), cache=cache, cache_dir=str(tmp_path))
        assert type(dataset) is kind
        dataset.transform.set_random_state(seed=0)
        patches = torch.stack([dataset[0]["image"].as_tensor() for _ in range(3)])
        assert not torch.equal(patches[0], patches[1])
        again = cached_dataset(cases, pipeline(), cache="none")
        again.transform.set_random_state(seed=0)
        torch.testing.assert_close(patches, torch.stack([again[0]["image"].as_tensor() for _ in range(3)]))
    # the intensity's Compose is kept too, so the mean of what is kept is 0
    assert abs(float(scan_of(cached_dataset(cases, pipeline(), cache_dir=str(tmp_path)))["image"].mean())) < 1e-4


def test_memory_keeps_a_share_and_what_it_keeps_is_not_changed_by_drawing(cases):
    assert len(cached_dataset(cases, pipeline(), cache="memory", cache_rate=0.5)._cache) == 1
    dataset = cached_dataset(cases, pipeline(), cache="memory")
    before = dataset._cache[0]["image"].clone()
    for _ in range(5):
        dataset[0]["image"].zero_()
    assert torch.equal(dataset._cache[0]["image"], before)


def test_several_processes_may_fill_a_cache_at_once(cases, tmp_path):
    dataset = cached_dataset(cases * 4, pipeline(), cache_dir=str(tmp_path / "cache"))
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    assert len([item["image"].shape for item in loader]) == 8
    assert len(files_in(tmp_path / "cache")) == len(list((tmp_path / "cache").iterdir())) == 2


def test_wrong_requests_are_refused(cases):
    with pytest.raises(ValueError, match="cache must be one of 'none', 'persistent', 'memory', got 'disk'"):
        cached_dataset(cases, pipeline(), cache="disk")
    with pytest.raises(ValueError, match="needs a folder for its files, cache_dir"):
        cached_dataset(cases, pipeline())


# --- fingerprints ----------------------------------------------------------------------------------------------------


def function_of(constant):
    return lambda x: x * constant


def lambda_of_config(spacing):
    parser = ConfigParser({"spacing": spacing, "other": 3, "f": "$lambda x: x * @spacing"})
    return parser.get_parsed_content("f")


def test_fingerprints_tell_apart_what_does_another_thing():
    pairs = [
        (1, 1.0),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": 2}),
        (np.arange(3), np.arange(3.0)),
        (torch.zeros(2), torch.zeros(3)),
        (torch.float32, torch.float64),
        (function_of(1), function_of(2)),
        (lambda_of_config([1, 1, 1]), lambda_of_config([2, 1, 1])),
        (partial(int, base=2), partial(int, base=3)),
        (mt.Spacing(pixdim=1.0), mt.Spacing(pixdim=1.5)),
        (mt.Spacing(pixdim=1.0), mt.Spacing(pixdim=1.0, mode="nearest")),
        (mt.LoadImage(reader="PILReader"), mt.LoadImage(reader="PILReader", reverse_indexing=False)),
        (mt.NormalizeIntensity(), mt.ScaleIntensity()),
    ]
    for one, other in pairs:
        assert fingerprint(one) != fingerprint(other), (one, other)


def test_fingerprints_are_the_same_for_the_same():
    for make in (
        lambda: mt.Spacingd(KEYS, pixdim=[0.5, 0.5, 1.0], mode=["bilinear", "nearest"]),
        lambda: function_of(3),
        lambda: lambda_of_config([1, 2, 3]),
        lambda: {"b": 1, "a": {3, 2, 1}},
        lambda: mt.Compose([mt.LoadImaged(KEYS)]),
    ):
        assert fingerprint(make()) == fingerprint(make())


def test_an_object_that_holds_itself_has_a_fingerprint():
    around = {"a": 1}
    around["self"] = around
    assert len(fingerprint(around)) == 64


def test_state_of_a_header_covers_its_voxels(tmp_path):
    (tmp_path / "scan.mhd").write_text("ElementDataFile = scan.raw")
    (tmp_path / "scan.raw").write_bytes(b"1")
    before = file_state(str(tmp_path / "scan.mhd"))
    (tmp_path / "scan.raw").write_bytes(b"22")
    assert file_state(str(tmp_path / "scan.mhd")) != before
    assert file_state("no file") is None

"""Networks that vote: the mean of probabilities, and a folder that is taken like that of a run."""

from __future__ import annotations

import pytest
import torch
import yaml

from monai_skelrec.ensembles import Ensemble, write_ensemble
from monai_skelrec.workflows import FACTS


def network():
    return torch.nn.Conv2d(1, 3, 3, padding=1)


def test_output_is_the_logarithm_of_the_mean_probability():
    torch.manual_seed(0)
    ensemble = Ensemble(network, 3)
    x = torch.randn(2, 1, 5, 6)
    with torch.no_grad():
        expected = torch.stack([member(x).softmax(1) for member in ensemble.members]).mean(0)
        torch.testing.assert_close(ensemble(x).exp(), expected)
        assert torch.equal(torch.jit.script(ensemble)(x), ensemble(x))


def test_sure_members_are_outvoted_by_probability_not_by_logit():
    """One member is certain of class 1 with a huge logit, two are certain of class 2: class 2 wins."""

    class Certain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(torch.zeros(1, 3, 1, 1))

        def forward(self, x):
            return self.logits.expand(len(x), 3, *x.shape[2:])

    ensemble = Ensemble(Certain, 3)
    with torch.no_grad():
        for member, logits in zip(ensemble.members, ([0, 1000, 0], [0, 0, 20], [0, 0, 20])):
            member.logits[0, :, 0, 0] = torch.tensor(logits, dtype=torch.float)
        out = ensemble(torch.zeros(1, 1, 2, 2))
    assert torch.isfinite(out).all() and (out.argmax(1) == 2).all()
    torch.testing.assert_close(out.exp()[0, :, 0, 0], torch.tensor([0.0, 1 / 3, 2 / 3]), atol=1e-6, rtol=0)


def test_one_member_gives_its_own_log_probabilities():
    ensemble = Ensemble(network, 1)
    x = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(ensemble(x), ensemble.members[0](x).log_softmax(1))


def test_no_member_is_refused():
    with pytest.raises(ValueError, match="at least one member, got size 0"):
        Ensemble(network, 0)


def write_run(folder, seed, **changes):
    folder.mkdir()
    torch.manual_seed(seed)
    weights = network().state_dict()
    torch.save(weights, folder / "model.pt")
    facts = {name: f"fact {name}" for name in FACTS}
    facts |= {"fold": seed, "checkpoint": str(folder / "model.pt")}
    facts["network_def"] = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 3, "kernel_size": 3}
    (folder / "task.yaml").write_text(yaml.safe_dump(facts | changes))
    return weights


def test_folder_of_an_ensemble_is_that_of_a_run(tmp_path):
    weights = [write_run(tmp_path / f"fold_{fold}", fold) for fold in range(2)]
    write_ensemble([str(tmp_path / f"fold_{fold}") for fold in range(2)], str(tmp_path / "ensemble"))
    ensemble = Ensemble(network, 2)
    ensemble.load_state_dict(torch.load(tmp_path / "ensemble" / "model.pt", weights_only=True))
    for member, expected in zip(ensemble.members, weights):
        assert torch.equal(member.weight, expected["weight"])
    facts = yaml.safe_load((tmp_path / "ensemble" / "task.yaml").read_text())
    assert facts["checkpoint"] == str(tmp_path / "ensemble" / "model.pt") and facts["fold"] == "all"
    assert facts["network_def"]["size"] == 2 and facts["network_def"]["member"]["_mode_"] == "callable"
    assert all(facts[name] == f"fact {name}" for name in FACTS if name != "checkpoint")


def test_runs_that_cannot_be_joined_are_named(tmp_path):
    with pytest.raises(ValueError, match="no runs to join: set --runs"):
        write_ensemble([], str(tmp_path / "ensemble"))
    write_run(tmp_path / "a", 0)
    write_run(tmp_path / "b", 1, spacing=[1, 1])
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(ValueError, match="differ in spacing: expected one task"):
        write_ensemble([a, b], str(tmp_path / "ensemble"))
    with pytest.raises(ValueError, match="is one of the runs, whose weights would be lost"):
        write_ensemble([a, b], a)
    (tmp_path / "b" / "model.pt").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.pt; train it first"):
        write_ensemble([a, b], str(tmp_path / "ensemble"))
    assert not (tmp_path / "ensemble").exists()

"""Going on after a stop: what is written, when, and that nothing is lost."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.networks.nets import DynUNet

from monai_skelrec import checkpoints, handlers, training_network
from monai_skelrec.networks import inference_state_dict


class Toy:
    """A trainer of one weight, whose validator scores epoch 2 best."""

    def __init__(self, folder, epochs):
        self.network = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)
        self.scheduler = torch.optim.lr_scheduler.PolynomialLR(self.optimizer, total_iters=epochs)
        self.validator = SimpleNamespace(state=SimpleNamespace(best_metric=-1, best_metric_epoch=-1))
        self.data_loader = [0.0, 0.0]
        self.trainer = Engine(self.step)
        self.trainer.data_loader = SimpleNamespace(dataset=[])
        self.trainer.state.epoch_length = 2
        self.trainer.state.max_epochs = epochs
        self.trainer.state.epoch = self.trainer.state.iteration = 0
        handlers.Reseed(7).attach(self.trainer)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: self.scheduler.step())
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.validate)
        self.checkpoints = checkpoints.RunCheckpoints(
            str(folder), self.network, self.optimizer, self.scheduler, self.validator
        )
        self.checkpoints.attach(self.trainer)

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        (self.network(torch.rand(4, 1)) - 3).pow(2).mean().backward()
        self.optimizer.step()

    def validate(self, engine):
        score = -abs(engine.state.epoch - 2)
        if score > self.validator.state.best_metric or self.validator.state.best_metric_epoch == -1:
            self.validator.state.best_metric, self.validator.state.best_metric_epoch = score, engine.state.epoch

    def run(self, until=None):
        if until is not None:
            self.trainer.add_event_handler(
                Events.EPOCH_COMPLETED, lambda engine: engine.state.epoch == until and engine.terminate()
            )
        self.trainer.run(self.data_loader, max_epochs=self.trainer.state.max_epochs, epoch_length=2)
        return self


def test_best_weights_and_last_state_are_written(tmp_path):
    toy = Toy(tmp_path, epochs=4).run()
    last = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (last["epoch"], last["best_metric"], last["best_metric_epoch"]) == (4, 0, 2)
    torch.testing.assert_close(last["network"], dict(toy.network.state_dict()))
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    assert best["weight"] != last["network"]["weight"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "model.pt", "previous.pt"]


def test_run_that_was_never_scored_keeps_its_last_weights(tmp_path):
    toy = Toy(tmp_path, epochs=2)
    toy.trainer.remove_event_handler(toy.validate, Events.EPOCH_COMPLETED)
    toy.run()
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    torch.testing.assert_close(best, dict(toy.network.state_dict()))


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    torch.manual_seed(0)
    whole = Toy(tmp_path / "whole", epochs=5).run()
    torch.manual_seed(0)
    Toy(tmp_path / "parts", epochs=5).run(until=3)
    resumed = Toy(tmp_path / "parts", epochs=5)
    checkpoints.resume_run(resumed.checkpoints, resumed.trainer)
    assert resumed.trainer.state.epoch == 3
    resumed.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name])
    assert resumed.validator.state.best_metric_epoch == 2
    assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_finished_run_is_not_resumed(tmp_path):
    toy = Toy(tmp_path, epochs=2).run()
    with pytest.raises(ValueError, match="has all 2 epochs already; raise --epochs to train on"):
        checkpoints.resume_run(toy.checkpoints, toy.trainer)


@pytest.mark.parametrize("done", [2, 4])
def test_longer_run_goes_on_with_the_rates_of_its_own_schedule(done, tmp_path):
    Toy(tmp_path, epochs=4).run(until=done)
    longer = Toy(tmp_path, epochs=8)
    checkpoints.resume_run(longer.checkpoints, longer.trainer)
    expected = longer.optimizer.defaults["lr"] * (1 - done / 8)
    assert longer.optimizer.param_groups[0]["lr"] == pytest.approx(expected)
    longer.run(until=6)
    assert longer.optimizer.param_groups[0]["lr"] == pytest.approx(longer.optimizer.defaults["lr"] * (1 - 6 / 8))


def test_nothing_to_resume_and_another_network_are_named(tmp_path):
    toy = Toy(tmp_path, epochs=2)
    with pytest.raises(FileNotFoundError, match="holds no run to resume; start without --resume"):
        checkpoints.resume_run(toy.checkpoints, toy.trainer)
    toy.run()
    longer = Toy(tmp_path, epochs=3)
    longer.checkpoints.network = torch.nn.Linear(1, 2)
    with pytest.raises(ValueError, match="last.pt' belongs to another network"):
        checkpoints.resume_run(longer.checkpoints, longer.trainer)


def dyn_unet(n_classes=2):
    return DynUNet(2, 1, n_classes, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[4, 4, 4, 4])


def test_training_starts_from_the_weights_of_another(tmp_path):
    source, other = training_network(dyn_unet()), training_network(dyn_unet())
    torch.save(inference_state_dict(source), tmp_path / "model.pt")
    torch.save({"network": source.state_dict(), "epoch": 3}, tmp_path / "last.pt")
    heads = [weights.clone() for weights in other.heads.parameters()]
    checkpoints.start_weights(None, other, str(tmp_path / "new"))
    first = "network.input_block.conv1.conv.weight"
    assert not torch.equal(other.state_dict()[first], source.state_dict()[first])
    checkpoints.start_weights(str(tmp_path / "model.pt"), other, str(tmp_path / "new"))
    torch.testing.assert_close(inference_state_dict(other), inference_state_dict(source), rtol=0, atol=0)
    assert all(map(torch.equal, heads, other.heads.parameters()))
    checkpoints.start_weights(str(tmp_path / "last.pt"), other, str(tmp_path / "new"))
    torch.testing.assert_close(other.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_resumed_run_keeps_its_own_weights(tmp_path):
    (tmp_path / "run").mkdir()
    Toy(tmp_path / "run", epochs=1).run()
    toy = Toy(tmp_path / "new", epochs=1)
    path, before = str(tmp_path / "run" / "last.pt"), toy.network.weight.item()
    checkpoints.start_weights(path, toy.network, str(tmp_path / "run"), resume=True)
    assert toy.network.weight.item() == before
    checkpoints.start_weights(path, toy.network, str(tmp_path / "new"), resume=True)
    assert toy.network.weight.item() != before


def test_weights_to_start_from_must_be_there_and_fit(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="start_from .*model.pt' is not there; name model.pt or last.pt of a run"
    ):
        checkpoints.start_weights(str(tmp_path / "model.pt"), dyn_unet(), str(tmp_path))
    for name, content in {
        "model.pt": dyn_unet(3).state_dict(),
        "last.pt": {"network": training_network(dyn_unet(3)).state_dict(), "epoch": 1},
    }.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}' belongs to another network .*another size of .*output_block"):
            checkpoints.start_weights(str(tmp_path / name), training_network(dyn_unet()), str(tmp_path))


def test_run_killed_before_its_first_checkpoint_starts_again_and_says_so(tmp_path, caplog):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "model.pt").touch()  # killed between the two files of the first epoch
    toy = Toy(tmp_path, epochs=2)
    checkpoints.resume_run(toy.checkpoints, toy.trainer)
    assert "was stopped before the end of its first epoch: it starts from the beginning" in caplog.text
    assert toy.trainer.state.epoch == 0 and checkpoints.finished_epochs(tmp_path) == 0
    toy.run()
    assert checkpoints.finished_epochs(tmp_path) == 2


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_previous_checkpoint_stands_in_for_the_last_one(damage, tmp_path, caplog):
    Toy(tmp_path, epochs=5).run(until=3)
    if damage == "missing":  # killed between two renames
        (tmp_path / "last.pt").unlink()
    else:
        (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:500])
    toy = Toy(tmp_path, epochs=5)
    checkpoints.resume_run(toy.checkpoints, toy.trainer)
    assert toy.trainer.state.epoch == 2
    assert ("previous.pt is taken instead" in caplog.text) == (damage == "cut off")


def test_state_of_the_loss_scaler_is_resumed(tmp_path):
    def scaler():
        return torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    stopped = Toy(tmp_path, epochs=4)
    stopped.trainer.scaler = scaler()
    stopped.trainer.scaler.scale(torch.ones(1))
    stopped.trainer.scaler.update(32.0)
    stopped.run(until=2)
    resumed = Toy(tmp_path, epochs=4)
    checkpoints.resume_run(resumed.checkpoints, resumed.trainer)
    resumed.trainer.scaler = scaler()  # as MONAI does when the run begins
    resumed.run()
    assert stopped.trainer.scaler.get_scale() == resumed.trainer.scaler.get_scale() == 32.0


def test_weights_that_are_not_finite_are_not_written(tmp_path):
    toy = Toy(tmp_path, epochs=2).run()
    before = (tmp_path / "last.pt").read_bytes()
    with torch.no_grad():
        toy.network.weight[:] = float("nan")
    with pytest.raises(ValueError, match=r"not finite after epoch 2 \(weight and 0 more\): nothing was written"):
        toy.checkpoints(toy.trainer)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_other_processes_than_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "is_first", lambda: False)
    Toy(tmp_path, epochs=2).run()
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    toy = Toy(tmp_path, epochs=2).run()
    before = (tmp_path / "last.pt").read_bytes()

    def killed(content, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(OSError, match="disk full"):
        toy.checkpoints(toy.trainer)
    assert (tmp_path / "last.pt").read_bytes() == before

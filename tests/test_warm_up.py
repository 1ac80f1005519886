"""Terms that begin after the first epochs: what the ramp scales, and which epochs count."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from ignite.engine import Events
from monai.losses import DiceLoss

from monai_skelrec import DiceCESkeletonRecallLoss, PieceErrorLoss, TubeDeepSupervisionLoss
from monai_skelrec.handlers import WarmUp


def test_ramp_is_a_factor_of_skeleton_recall():
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 3, 9, 9, generator=generator, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 1, 9, 9), generator=generator)
    target = torch.cat([label, label], 1)
    warming = DiceCESkeletonRecallLoss(lambda_skeleton=2.0)
    warming.ramp = 0.25
    assert warming(input, target).item() == DiceCESkeletonRecallLoss(lambda_skeleton=0.5)(input, target).item()


def test_warm_up_follows_the_number_of_the_epoch():
    loss = TubeDeepSupervisionLoss(PieceErrorLoss(DiceCESkeletonRecallLoss()))
    handler, engine = WarmUp(loss, epochs=2), SimpleNamespace(state=SimpleNamespace(epoch=0))
    ramps = []
    for engine.state.epoch in (1, 2, 3, 2):  # a resumed run may begin anywhere
        handler(engine)
        ramps.append((loss.loss.ramp, loss.loss.loss.ramp))
    assert ramps == [(0, 0), (0, 0), (1, 1), (0, 0)]


def test_pieces_wait_longer_than_skeleton_recall():
    loss = TubeDeepSupervisionLoss(PieceErrorLoss(DiceCESkeletonRecallLoss(), warm_up=3))
    ramps = {}
    for epochs in (0, 2, 4):
        engine, ramps[epochs] = SimpleNamespace(state=SimpleNamespace(epoch=0)), []
        handler = WarmUp(loss, epochs)
        for engine.state.epoch in (2, 3, 4, 5):
            handler(engine)
            ramps[epochs].append((loss.loss.loss.ramp, loss.loss.ramp))
    assert ramps == {
        0: [(1, 0), (1, 0), (1, 1), (1, 1)],
        2: [(0, 0), (1, 0), (1, 1), (1, 1)],
        4: [(0, 0), (0, 0), (0, 0), (1, 1)],
    }


def test_warm_up_of_pieces_alone_is_heard():
    for warm_up, heard in {0: [], 3: [Events.EPOCH_STARTED]}.items():
        engine = Mock()
        WarmUp(PieceErrorLoss(DiceCESkeletonRecallLoss(), warm_up=warm_up), 0).attach(engine)
        assert [call.args[0] for call in engine.add_event_handler.call_args_list] == heard


def test_warm_up_of_nothing_is_refused():
    with pytest.raises(ValueError, match="DiceLoss has no term that could be warmed up; set warm_up to 0"):
        WarmUp(DiceLoss(), epochs=1)
    with pytest.raises(ValueError, match="a warm-up must take at least 0 epochs, got -1"):
        WarmUp(PieceErrorLoss(DiceCESkeletonRecallLoss()), epochs=-1)
    WarmUp(DiceLoss(), epochs=0)

"""The knobs of the piece error, in a training and in a comparison."""

from __future__ import annotations

import pytest
from bundle_data import files_of
from monai.bundle import ConfigParser

from monai_skelrec import TubeDeepSupervisionLoss


def parsed(**knobs):
    parser = ConfigParser()
    parser.read_config(files_of("train.yaml", "pieces.yaml"))
    parser.update({"imports": ["$import torch", "$import monai_skelrec"], **knobs})
    return parser


def test_knobs_of_pieces_yaml():
    parser = parsed(lambda_pieces=0.5, piece_tolerance=1, piece_margin=0.2, lambda_skeleton=0.7, epochs=40)
    loss = parser.get_parsed_content("loss")
    assert not loss.balanced and parsed(piece_balanced=True).get_parsed_content("loss").balanced
    assert (loss.lambda_pieces, loss.tolerance, loss.margin) == (0.5, 1, 0.2)
    assert loss.loss.loss.lambda_skeleton == 0.7
    assert loss.warm_up == 10
    assert parsed(piece_warm_up=0, epochs=40).get_parsed_content("loss").warm_up == 0


@pytest.mark.parametrize(
    "knobs",
    [{}, {"lambda_pieces": 0.3, "piece_tolerance": 2, "piece_margin": 0.1, "piece_balanced": True, "piece_warm_up": 7}],
)
def test_comparison_trains_the_loss_of_pieces_yaml(knobs):
    loss, parser = parsed(**knobs).get_parsed_content("loss"), ConfigParser()
    parser.read_config(files_of("train.yaml", "compare.yaml"))
    parser.update({**parser.get("loss_library")["pieces"], **knobs})
    compared = parser.get_parsed_content("loss")
    for name in ("lambda_pieces", "tolerance", "margin", "balanced", "warm_up"):
        assert getattr(loss, name) == getattr(compared, name)
    assert type(compared.loss) is TubeDeepSupervisionLoss
    assert loss.loss.loss.lambda_skeleton == compared.loss.loss.lambda_skeleton == 0.3

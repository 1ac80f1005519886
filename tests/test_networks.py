"""Plans by nnU-Net's rules, heads at their own resolution, and any of MONAI's networks through the bundle."""

from __future__ import annotations

import copy

import monai.bundle
import pytest
import torch
import yaml
from bundle_data import SMALL_BUDGET, SMALL_NETWORK, files_of, overlay, run_of, write_data
from monai.bundle import ConfigParser
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock
from monai.networks.nets import DynUNet, SegResNet

from monai_skelrec import (
    DiceCESkeletonRecallLoss,
    SupervisedDynUNet,
    TubeDeepSupervisionLoss,
    inference_state_dict,
    plan_unet,
    training_network,
)

# --- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["topcow", "topcow_binary", "toothfairy", "toothfairy2", "folder"])
def test_plans_of_the_tasks_are_those_of_the_rules(task):
    facts = ConfigParser.load_config_files(files_of("train.yaml", *overlay(task)))
    plan = plan_unet(facts["patch_size"], facts["spacing"])
    assert {name: facts[name] for name in ("strides", "kernel_size", "filters")} == {
        name: plan[name] for name in ("strides", "kernel_size", "filters")
    }


def test_pictures_and_phantoms_take_less_than_the_rules_for_speed():
    pictures = ConfigParser.load_config_files(files_of("folder_2d.yaml"))
    plan = plan_unet(pictures["patch_size"])
    assert plan["strides"] == [[1, 1]] + 5 * [[2, 2]] and plan["filters"] == [32, 64, 128, 256, 512, 512]
    assert pictures["strides"] == [1, 2, 2, 2, 2] and pictures["filters"] == [32, 64, 128, 256, 320]
    phantom = ConfigParser.load_config_files(files_of("phantom.yaml"))
    plan = plan_unet(phantom["patch_size"])
    assert phantom["strides"] == plan["strides"] and phantom["kernel_size"] == plan["kernel_size"]
    assert [filters / 2 for filters in plan["filters"]] == [16, 32, 64, 128] and phantom["filters"] == [16, 32, 64, 96]


def test_long_voxels_are_neither_halved_nor_convolved_until_the_others_are_as_long():
    # 3.6 mm against 0.62: halved twice to 2.48 before the third axis, which ends at 5 voxels, joins in
    plan = plan_unet([320, 256, 20], [0.62, 0.62, 3.6])
    assert plan["strides"] == [[1, 1, 1]] + 2 * [[2, 2, 1]] + 2 * [[2, 2, 2]] + 2 * [[2, 2, 1]]
    assert plan["kernel_size"] == 2 * [[3, 3, 1]] + 5 * [[3, 3, 3]]
    assert plan["filters"] == [32, 64, 128, 256, 320, 320, 320]
    assert plan["upsample_kernel_size"] == plan["strides"][1:]


def test_a_ratio_of_two_counts_as_long():
    assert plan_unet([64, 64, 16], [1, 1, 2])["kernel_size"][0] == [3, 3, 1]
    assert plan_unet([64, 64, 16], [1, 1, 1.99])["kernel_size"][0] == [3, 3, 3]


def test_a_single_axis_is_halved_only_while_it_has_twelve_voxels():
    assert plan_unet([16, 16, 64])["strides"] == [[1] * 3, [2, 2, 2], [2, 2, 2], [1, 1, 2]]  # 64, 32, 16, 8
    assert plan_unet([16, 16, 48])["strides"] == [[1] * 3, [2, 2, 2], [2, 2, 2], [1, 1, 2]]  # 48, 24, 12, 6


@pytest.mark.parametrize(
    "patch_size, spacing, message",
    [
        ([64], None, r"patch_size must have 2 or 3 entries, got \[64\]"),
        ([64, 64], [1, 1, 1], r"spacing must have 2 positive entries, as patch_size, got \[1, 1, 1\]"),
        ([64, 64], [1, 0], "positive entries"),
        (
            [100, 100],
            None,
            r"patch_size \[100, 100\] must be a multiple of \[16, 16\]; the next larger is \[112, 112\]",
        ),
        ([8, 8, 8], None, r"patch_size \[8, 8, 8\] is too small for a U-Net of three levels"),
    ],
)
def test_a_patch_that_cannot_be_planned_is_named(patch_size, spacing, message):
    with pytest.raises(ValueError, match=message):
        plan_unet(patch_size, spacing)


# --- heads -----------------------------------------------------------------------------------------------------------


def small_unet(dims=3, **options):
    strides = [[1, 1, 1], [2, 2, 1], [2, 2, 2], [1, 2, 2], [2, 2, 2]]
    strides = [stride[:dims] for stride in strides]
    return DynUNet(dims, 1, 3, [[3] * dims] * 5, strides, strides[1:], filters=[2, 3, 4, 5, 6], **options)


@pytest.mark.parametrize("options", [{}, {"res_block": True}, {"trans_bias": True}, {"dropout": 0.5}])
@pytest.mark.parametrize("dims", [2, 3])
def test_heads_come_at_their_own_resolution_and_evaluation_is_the_plain_network(dims, options):
    torch.manual_seed(0)
    plain = small_unet(dims, **options)
    network = SupervisedDynUNet(plain)
    x = torch.randn(2, 1, *(16, 32, 16)[:dims])
    torch.manual_seed(1)
    heads = network(x)
    # the coarsest of four decoder resolutions has none
    expected = [(16, 32, 16), (8, 16, 16), (4, 8, 8)]
    assert [head.shape for head in heads] == [(2, 3, *size[:dims]) for size in expected]
    torch.manual_seed(1)
    torch.testing.assert_close(heads[0], plain(x), rtol=0, atol=0)
    network.eval()
    assert not plain.training
    assert torch.equal(network(x), plain(x))


def step(network, learning_rate=0.1):
    torch.manual_seed(2)
    target = torch.randint(0, 3, (1, 2, 16, 32, 16))
    value = TubeDeepSupervisionLoss(DiceCESkeletonRecallLoss())(network(torch.randn(1, 1, 16, 32, 16)), target)
    network.zero_grad()
    value.backward()
    torch.optim.SGD(network.parameters(), learning_rate).step()


def test_every_parameter_changes_in_one_step():
    """The published code trains its full-resolution head alone: its loss never sees the others."""
    network = SupervisedDynUNet(small_unet())
    before = {name: value.clone() for name, value in network.named_parameters()}
    step(network)
    assert len(network.heads) == 2
    for name, value in network.named_parameters():
        assert not torch.equal(value, before[name]), name


def test_weights_for_inference_load_strictly_into_the_plain_network(tmp_path):
    network = SupervisedDynUNet(small_unet())
    step(network)
    torch.save(inference_state_dict(network), tmp_path / "model.pt")
    plain = small_unet()
    plain.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    x = torch.randn(1, 1, 16, 16, 16)
    plain.eval(), network.eval()
    assert torch.equal(plain(x), network(x))
    torch.testing.assert_close(torch.jit.script(plain)(x), plain(x))


def test_weights_for_inference_are_found_within_wrappers():
    network = SupervisedDynUNet(small_unet())
    plain = set(network.network.state_dict())
    for wrapped in (network, network.network, torch.nn.DataParallel(network)):
        assert set(inference_state_dict(wrapped)) == plain
    other = SegResNet(init_filters=8)
    assert set(inference_state_dict(other)) == set(other.state_dict())


def test_a_network_can_be_copied_after_a_step_and_shares_nothing_with_the_copy():
    network = SupervisedDynUNet(small_unet())
    step(network)
    before = copy.deepcopy(network)
    copied = copy.deepcopy(network)
    step(copied)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])
        assert not torch.equal(value, copied.state_dict()[name])


def test_weights_start_as_he_et_al_ask():
    torch.manual_seed(0)
    network = SupervisedDynUNet(DynUNet(3, 1, 14, **plan_unet([64, 64, 64])))
    for head, channels in zip(network.heads, (64, 128)):
        gain = (2 / (1 + 0.01**2)) ** 0.5
        assert head.conv.conv.weight.std().item() == pytest.approx(gain / channels**0.5, rel=0.1)
        assert not head.conv.conv.bias.any()


def test_residual_blocks_stand_in_the_encoder_only():
    plain, residual = small_unet(), small_unet(res_block=True)
    for network, encoder in ((plain, UnetBasicBlock), (residual, UnetResBlock)):
        assert all(type(b) is encoder for b in (network.input_block, *network.downsamples, network.bottleneck))
        assert all(type(up.conv_block) is UnetBasicBlock for up in network.upsamples)


def test_only_a_dynunet_gets_heads_and_only_when_asked():
    plain, other = small_unet(), SegResNet(init_filters=8)
    assert isinstance(training_network(plain), SupervisedDynUNet)
    assert training_network(plain).network is plain
    assert training_network(plain, deep_supervision=False) is plain
    assert training_network(other) is other
    three_levels = DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 2, 2])
    assert [head.shape for head in training_network(three_levels)(torch.zeros(1, 1, 8, 8))] == [(1, 2, 8, 8)]


def test_heads_of_monais_own_are_refused():
    with pytest.raises(ValueError, match="deep supervision already: build it with deep_supervision=False"):
        SupervisedDynUNet(small_unet(deep_supervision=True))


# --- through the bundle ----------------------------------------------------------------------------------------------

NETWORKS = {
    "SegResNet": {"spatial_dims": "@spatial_dims", "init_filters": 8},
    "SegResNetDS": {"spatial_dims": "@spatial_dims", "init_filters": 8, "blocks_down": [1, 1, 1], "dsdepth": 3},
    "MedNeXt": {
        "init_filters": 4,
        "kernel_size": 3,
        "deep_supervision": True,
        "blocks_down": [1, 1],
        "blocks_bottleneck": 1,
        "blocks_up": [1, 1],
    },
    "SwinUNETR": {"feature_size": 12, "num_heads": [1, 1, 2, 2], "depths": [1, 1, 1, 1]},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_data("topcow", tmp_path_factory.mktemp("data")))


def train(data, folder, files=("train.yaml",), **knobs):
    monai.bundle.run(
        run_id="training",
        config_file=files_of(*files),
        dataset_dir=data,
        output_dir=str(folder / "run"),
        **{**SMALL_BUDGET, "iterations_per_epoch": 1, "spacing": [1.0, 1.0, 1.0], **knobs},
    )
    return folder / "run"


def infer(data, folder):
    monai.bundle.run(
        run_id="inferring",
        config_file=run_of(folder, "inference.json"),
        dataset_dir=data + "/imagesTr",
        output_dir=str(folder / "out"),
    )
    return len(list((folder / "out").iterdir()))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_network_is_named_in_one_line(name, data, tmp_path):
    options = {"in_channels": "@in_channels", "out_channels": "$len(@class_names)", **NETWORKS[name]}
    if name == "SwinUNETR":
        pytest.importorskip("einops")
    knobs = {**SMALL_NETWORK, "patch_size": [32, 64, 32]}  # SwinUNETR's instance norm wants more than a block of 32
    run = train(data, tmp_path, **knobs, network_def={"_target_": name, **options})
    assert infer(data, tmp_path) == 4
    assert yaml.safe_load((run / "task.yaml").read_text())["network_def"]["_target_"] == name
    if name == "SegResNetDS":
        monai.bundle.run(
            run_id="evaluating",
            config_file=run_of(tmp_path, "evaluate.yaml"),
            dataset_dir=data,
            output_dir=str(tmp_path / "evaluation"),
        )
        assert (tmp_path / "evaluation" / "scores.csv").is_file()


@pytest.mark.parametrize("residual", [False, True])
def test_a_planned_network_trains_with_heads_and_infers_without(residual, data, tmp_path):
    run = train(data, tmp_path, ("train.yaml", "plan.yaml"), patch_size=[32, 32, 32], residual=residual)
    facts = yaml.safe_load((run / "task.yaml").read_text())
    plan = plan_unet([32, 32, 32])
    assert {name: facts[name] for name in ("strides", "kernel_size", "filters")} == {
        name: plan[name] for name in ("strides", "kernel_size", "filters")
    }
    parser = ConfigParser()
    parser.read_config(run_of(tmp_path, "inference.json"))
    network = parser.get_parsed_content("network_def")
    assert type(network) is DynUNet and (type(network.bottleneck) is UnetResBlock) == residual
    network.load_state_dict(torch.load(run / "model.pt", weights_only=True), strict=True)
    last = torch.load(run / "last.pt", weights_only=True)["network"]
    assert len([name for name in last if name.startswith("heads.")]) == 2  # weight and bias of one head
    assert infer(data, tmp_path) == 4


@pytest.mark.parametrize("knob, kind", [(True, SupervisedDynUNet), (False, DynUNet)])
def test_the_knob_turns_heads_on_and_off(knob, kind):
    parser = ConfigParser()
    parser.read_config(files_of("train.yaml", "phantom.yaml"))
    parser["deep_supervision"] = knob
    network = parser.get_parsed_content("network")
    assert type(network) is kind
    assert len(network.train()(torch.zeros(1, 1, 16, 16, 16))) == (2 if knob else 1)  # heads, or the batch's one item

import pytest
import torch

from indistill.distillation.distill import Distillation, StageStep
from indistill.distillation.pairing import choose_channels, match_stages, pair_stages
from indistill.errors import StageError
from indistill.models.loading import Network, load_network
from indistill.pruning.channels import align_sizes
from indistill.stages.graph import StagePair, read_grid, to_map
from indistill.stages.trunk import Stage

VIT, RESNET = "timm:test_vit?img_size=64", "timm:test_resnet"
IMAGES = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def load(spec: str, size: int = 64) -> Network:
    torch.manual_seed(0)
    return load_network(spec, arguments={"image_size": size})


def make_stages(strides: str, depths: str) -> list[Stage]:
    values = zip(map(float, strides.split()), map(float, depths.split()), strict=True)
    return [Stage(f"{stride:g}@{depth:g}", 8, int(64 / stride), stride, depth) for stride, depth in values]


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (("2 4 8 16 32", "0 .2 .4 .7 1"), ("4 8 16 32", ".1 .3 .7 1"), [(1, 0), (2, 1), (3, 2), (4, 3)]),
        (("4 8 16", ".2 .5 1"), ("2.1 5.3 16", ".3 .6 1"), [(0, 0), (1, 1), (2, 2)]),
        (("8 32", ".2 1"), ("2 8 32", ".2 .5 1"), [(0, 1), (1, 2)]),
        (("2 4", ".5 1"), ("16 32", ".5 1"), []),
        (("16 16 16 16", ".25 .5 .75 1"), ("2 4 8 16 32", "0 .2 .5 .7 1"), [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (("16 16 16 16", ".25 .5 .75 1"), ("16 16", ".5 1"), [(1, 0), (3, 1)]),
    ],
)
def test_stages_are_matched_by_stride_and_in_plain_networks_by_depth(teacher, student, expected) -> None:
    teachers, students = make_stages(*teacher), make_stages(*student)
    found = [(teachers.index(t), students.index(s)) for t, s in match_stages(teachers, students)]
    assert found == expected


def test_a_transformer_teaches_a_convolutional_network_and_back() -> None:
    for teacher, student in ((load(VIT), load(RESNET)), (load(RESNET), load(VIT))):
        pairing = choose_channels(
            pair_stages(teacher, student, (), warm_up=True, image_size=64), IMAGES, "activation", seed=0
        )
        assert pairing.stages
        distillation = Distillation(
            teacher.module, student.module, teacher.embedding, student.embedding, pairing.stages
        )
        for pair, row in zip(pairing.stages, pairing.describe(), strict=True):
            step = StageStep(distillation, pair, IMAGES, batch_statistics=False)
            assert step.keep.tolist() == list(pair.channels)
            assert len(pair.channels) == row["kept"] == row["student_width"] <= row["teacher_width"]
            assert 0 < row["energy"] <= 1
            step(IMAGES, step.prepare(IMAGES, torch.zeros(4))).backward()


def test_wider_stages_are_skipped_or_refused() -> None:
    teacher, student = load(RESNET), load(VIT)
    pairing = pair_stages(teacher, student, (), warm_up=True, image_size=64)
    assert [pair.teacher for pair in pairing.stages] == ["layer3", "layer4"]
    assert pairing.skipped[0] == "stage layer1:blocks.1: the teacher has 32 channels, fewer than the student's 64"
    with pytest.raises(StageError, match=r"fewer than the student's 64, so there is nothing to prune"):
        pair_stages(teacher, student, (), warm_up=True, image_size=64, wider="refuse")
    kept = pair_stages(teacher, student, (), warm_up=True, image_size=64, wider="keep")
    assert (len(kept.stages), kept.skipped) == (4, ())


def test_a_wider_stage_that_is_named_is_an_error() -> None:
    pairing = pair_stages(load(RESNET), load(VIT), (StagePair("layer1", "blocks.1"),), warm_up=True, image_size=64)
    with pytest.raises(StageError, match=r"stage layer1:blocks\.1: the teacher has 32 channels, fewer"):
        choose_channels(pairing, IMAGES, "l1", seed=0)


def test_known_stages_are_paired_in_their_order() -> None:
    pairing = pair_stages(load("paper:resnet18?width=8", 32), load("paper:cnn-s", 32), (), warm_up=True, image_size=32)
    assert pairing.stages == tuple(StagePair(f"stage{i}", f"stage{i}") for i in (1, 2, 3))
    same = pair_stages(load("paper:resnet18?width=8", 32), load("paper:cnn-s", 32), (), warm_up=True)
    assert same.stages == pairing.stages


def test_nothing_to_pair_is_an_error_with_what_to_do() -> None:
    with pytest.raises(StageError, match="regressor, or leave the warm-up out with --no-warm-up"):
        pair_stages(load("paper:cnn-s", 32), load("paper:cnn-a", 32), (), warm_up=True, image_size=32)
    assert pair_stages(load("paper:cnn-s", 32), load("paper:cnn-a", 32), (), warm_up=False).stages == ()


def test_tokens_become_a_map_without_those_before_the_grid() -> None:
    tokens = torch.arange(2.0 * 5 * 3).view(2, 5, 3)
    mapped = to_map(tokens, 32)
    assert mapped.shape == (2, 3, 2, 2)
    assert mapped[1, 2].flatten().tolist() == tokens[1, 1:, 2].tolist()
    assert read_grid((2, 9, 3), 32) == (3, 2)  # five tokens and a grid of 2x2: three do not divide 32
    assert read_grid((2, 9, 3), 48) == (3, 3)
    assert read_grid((2, 200, 3), 32) is None


def test_channels_last_maps_are_permuted_and_meet_smaller_ones() -> None:
    feature = torch.randn(2, 4, 4, 3)
    assert torch.equal(to_map(feature, 16), feature.permute(0, 3, 1, 2))
    assert torch.equal(to_map(feature.permute(0, 3, 1, 2), 16), feature.permute(0, 3, 1, 2))
    pooled, _ = align_sizes(to_map(feature, 16), torch.zeros(2, 3, 2, 2))
    assert torch.allclose(pooled[0, :, 0, 0], feature[0, :2, :2].mean((0, 1)))

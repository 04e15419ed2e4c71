import pytest
import torch

from indistill.distillation.distill import Distillation, StageStep
from indistill.distillation.joint import JointStep
from indistill.models.paper import build_cnn_a, build_cnn_s
from indistill.stages.graph import StagePair


def test_a_joint_step_is_the_sum_of_its_stages_and_trains_all_of_them() -> None:
    torch.manual_seed(0)
    pairs = tuple(StagePair(f"stage{i}", f"stage{i}") for i in (1, 2))
    distillation = Distillation(build_cnn_a(), build_cnn_s(), "embedding", "embedding", pairs)
    steps = [StageStep(distillation, pair, torch.zeros(2, 3, 32, 32), batch_statistics=False) for pair in pairs]
    joint, images, labels = JointStep(steps), torch.randn(4, 3, 32, 32), torch.zeros(4)
    joint.network.eval()
    target = joint.prepare(images, labels)
    loss = joint(images, target)
    assert loss.item() == pytest.approx(sum(step(images, step.prepare(images, labels)).item() for step in steps))
    loss.backward()
    student = distillation.student
    assert student.conv1.weight.grad is not None
    assert student.conv2.weight.grad is not None
    assert student.conv3.weight.grad is None

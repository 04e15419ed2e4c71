"""What the embedding stage's loss is made of, and what it reads."""

import sys

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from indistill.curriculum.phases import Phase
from indistill.data.batches import Batches
from indistill.data.pixels import Pixels
from indistill.distillation.distill import Distillation, EmbeddingStep, StageStep, build_terms
from indistill.errors import InputError, ModelError, StageError
from indistill.losses.kd import KdLoss
from indistill.losses.options import LossOptions
from indistill.losses.pkt import PktLoss
from indistill.models.paper import build_cnn_a, build_cnn_s
from indistill.preprocess import Preprocessing
from indistill.stages.graph import Embedder, StagePair, Tap
from indistill.stages.taps import Taps
from indistill.training.loop import train

PAIRS = tuple(StagePair(f"stage{i}", f"stage{i}") for i in (1, 2, 3))
EXAMPLE = torch.zeros(2, 3, 32, 32)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Headless(nn.Module):
    """An embedding and no classifier."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1)
        self.flatten, self.classifier = nn.Flatten(), nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.conv(image))))


class Silent:
    def report_batch(self, phase: Phase, loss: Tensor, images: int) -> None:
        pass

    def report_epoch(self, record: dict) -> None:
        pass


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make_distillation(student_classes: int = 10, **changes: object) -> Distillation:
    ends = build_cnn_a().eval(), build_cnn_s(student_classes).eval()
    return Distillation(*ends, "embedding", "embedding", changes.pop("pairs", PAIRS), **changes)


def make_step(distillation: Distillation, options: LossOptions, **arguments: int) -> EmbeddingStep:
    classes = arguments.pop("classes", 10)
    return EmbeddingStep(distillation, build_terms(distillation, EXAMPLE, options, classes=classes), **arguments)


def compute(step: EmbeddingStep, images: Tensor) -> float:
    return float(step(images, step.prepare(images, LABELS)).detach())


def compare(loss: PktLoss | KdLoss, student: Tensor, teacher: Tensor) -> float:
    with torch.no_grad():
        return float(loss(student, loss.prepare(teacher)))


def test_kd_compares_the_outputs_of_both_networks() -> None:
    distillation, images = make_distillation(), torch.randn(6, 3, 32, 32)
    expected = 3 * compare(KdLoss(2.0), distillation.student(images), distillation.teacher(images))
    step = make_step(distillation, LossOptions("kd", weight=3, temperature=2))
    assert compute(step, images) == pytest.approx(expected, rel=1e-3)


def test_pkth_adds_pkt_of_all_stages_whose_weight_falls_on_through_the_phases() -> None:
    distillation, images = make_distillation(), torch.randn(6, 3, 32, 32)

    def compare_nodes(node: str) -> float:
        ends = Tap(distillation.student, node)(images), Tap(distillation.teacher, node)(images)
        return compare(PktLoss(1000), *(feature.flatten(1) for feature in ends))

    embedding, stages = compare_nodes("embedding"), sum(compare_nodes(f"stage{i}") for i in (1, 2, 3))
    for first, epoch in ((0, 0), (0, 2), (2, 1)):
        step = make_step(distillation, LossOptions("pkth"), first_epoch=first)
        step.begin_epoch(epoch)
        expected = embedding + 100 * 0.7 ** (first + epoch) * stages
        assert compute(step, images) == pytest.approx(expected, rel=1e-2)


def test_pkth_without_stages_is_refused() -> None:
    with pytest.raises(StageError, match="'pkth' compares stages, and none are paired: name some with --pair"):
        make_step(make_distillation(pairs=()), LossOptions("pkth"))


def test_a_supervised_loss_reads_the_logits_of_the_same_pass() -> None:
    distillation, images = make_distillation(), torch.randn(6, 3, 32, 32)
    pkt = compute(make_step(distillation, LossOptions()), images)
    step = make_step(distillation, LossOptions(supervised="cross-entropy", supervised_weight=2))
    passes: list[int] = []
    distillation.student.conv1.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        expected = pkt + 2 * float(F.cross_entropy(distillation.student(images), LABELS))
    passes.clear()
    assert compute(step, images) == pytest.approx(expected, rel=1e-3)
    assert len(passes) == 1


def test_a_metric_learning_loss_reads_the_embedding_and_the_labels() -> None:
    distillation, images = make_distillation(), torch.randn(6, 3, 32, 32)
    pkt = compute(make_step(distillation, LossOptions()), images)
    embeddings = F.normalize(Embedder(distillation.student, "embedding")(images)).tolist()
    violations = []
    for a in range(6):
        for p in range(6):
            for n in range(6):
                if a != p and LABELS[a] == LABELS[p] != LABELS[n]:
                    gap = np.linalg.norm(np.subtract(embeddings[a], embeddings[p]))
                    violations.append(max(0.0, gap - np.linalg.norm(np.subtract(embeddings[a], embeddings[n])) + 0.05))
    triplet = float(np.mean([x for x in violations if x > 0]))
    step = make_step(distillation, LossOptions(supervised="triplet"), classes=3)
    assert compute(step, images) - pkt == pytest.approx(triplet, rel=1e-2)


@pytest.mark.parametrize("name", ["triplet", "multi-similarity", "supcon"])
def test_metric_learning_losses_have_a_gradient(name: str) -> None:
    distillation, images = make_distillation(), torch.randn(6, 3, 32, 32)
    with_labels, without = (
        make_step(distillation, LossOptions(supervised=supervised)) for supervised in (name, "none")
    )
    gradients = []
    for step in (with_labels, without):
        loss = step(images, step.prepare(images, LABELS))
        gradients.append(torch.autograd.grad(loss, distillation.student.fc1.weight)[0])
    assert torch.isfinite(gradients[0]).all()
    assert not torch.allclose(*gradients, rtol=1e-3)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(
        InputError, match=r"loss.supervised 'supcon' needs .* pip install 'indistill\[metric-learning\]'"
    ):
        make_step(make_distillation(), LossOptions(supervised="supcon"))


@pytest.mark.parametrize("name", ["kd", "dkd"])
def test_logits_must_exist_and_be_as_many(name: str) -> None:
    with pytest.raises(
        ModelError, match=r"the teacher has 10, the student 7: .* by \?num_classes=10 .*, or .* --loss pkt"
    ):
        make_step(make_distillation(7), LossOptions(name))
    for ends, role in (((Headless(), build_cnn_s()), "teacher"), ((build_cnn_a(), Headless()), "student")):
        nodes = ["flatten" if isinstance(end, Headless) else "embedding" for end in ends]
        with pytest.raises(ModelError, match=f"loss '{name}' reads logits, and the {role} gives none"):
            make_step(Distillation(*ends, *nodes, ()), LossOptions(name))


def test_cross_entropy_needs_a_logit_for_each_class() -> None:
    with pytest.raises(ModelError, match=r"the student gives 10, the data has 3 classes: .*num_classes=3"):
        make_step(make_distillation(), LossOptions(supervised="cross-entropy"), classes=3)


def test_mixed_precision_ends_before_the_loss() -> None:
    distillation, images = make_distillation(), torch.randn(6, 3, 32, 32)
    step = make_step(distillation, LossOptions())
    target = step.prepare(images, LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = Embedder(distillation.student, "embedding")(images)
        loss, careless = float(step(images, target).detach()), float(PktLoss()(embeddings, target).detach())
    expected = float(PktLoss()(embeddings, target).detach())
    assert embeddings.dtype == torch.bfloat16
    assert loss == pytest.approx(expected, rel=1e-3)
    assert careless != pytest.approx(expected, rel=1e-2)  # so that the check can fail


@pytest.mark.parametrize("name", ["hint", "regression"])
def test_what_a_loss_learns_is_trained_beside_the_student_and_is_no_part_of_it(name: str) -> None:
    distillation = make_distillation()
    names = set(distillation.student.state_dict())
    terms = build_terms(distillation, EXAMPLE, LossOptions(name))
    step = EmbeddingStep(distillation, terms)
    weight, _ = step.learnt.parameters()
    assert tuple(weight.shape) == (128, 64)
    before = weight.detach().clone()
    train_step(distillation, step)
    assert not torch.equal(before, weight)
    assert set(distillation.student.state_dict()) == names
    # A later phase goes on with what was learnt.
    assert next(EmbeddingStep(distillation, terms, first_epoch=1).learnt.parameters()) is weight


def test_a_regressor_compares_the_whole_stage_of_the_teacher() -> None:
    distillation, images = make_distillation(alignment="regressor"), torch.randn(4, 3, 32, 32)
    step = StageStep(distillation, PAIRS[1], EXAMPLE, batch_statistics=False)
    assert isinstance(step.learnt, nn.Conv2d)
    with torch.no_grad():
        target, feature = Tap(distillation.teacher, "stage2")(images), Tap(distillation.student, "stage2")(images)
        weight = step.learnt.weight.flatten(1)  # (32, 16)
        imitation = torch.einsum("tc,bchw->bthw", weight, feature) + step.learnt.bias[:, None, None]
    loss = float(step(images, step.prepare(images, LABELS)).detach())
    assert loss == pytest.approx(float((imitation - target).square().mean()), rel=1e-3)
    before = weight.clone()
    train_step(distillation, step)
    assert not torch.equal(before, step.learnt.weight.flatten(1))


def test_a_regressor_needs_no_wider_teacher() -> None:
    narrow = Distillation(build_cnn_s(), build_cnn_a(), "embedding", "embedding", PAIRS, "regressor")
    step = StageStep(narrow, PAIRS[0], EXAMPLE, batch_statistics=False)
    assert tuple(step.learnt.weight.shape) == (8, 16, 1, 1)


def test_taps_of_one_pass_are_those_of_single_taps_even_if_two_names_mean_one_node() -> None:
    network, images = build_cnn_s().eval(), torch.randn(2, 3, 32, 32)
    wrapped = nn.Sequential(nn.Sequential(network, nn.Identity()), nn.Identity())
    for module, nodes in (
        (network, ["fc2", "stage1", "embedding", "fc2"]),
        (wrapped, ["0.0", "0.0.fc2", "0.0.stage1"]),
    ):
        for node, feature in zip(nodes, Taps(module, nodes)(images), strict=True):
            torch.testing.assert_close(feature, Tap(module, node)(images))


def train_step(distillation: Distillation, step: StageStep | EmbeddingStep) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8)
    pixels = Pixels("mine", images, np.zeros(16, dtype=np.int64), (), (), ())
    batches = Batches(
        pixels, Preprocessing(32), batch_size=8, flip=False, crop_padding=0, seed=0, device=torch.device("cpu")
    )
    train(distillation.student, (Phase("e", "embedding", 0, 1, 1e-3),), batches, lambda _: step, Silent())

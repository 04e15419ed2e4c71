"""What all losses have in common: sizes, corners, precision."""

import math
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from indistill.errors import ConfigError
from indistill.losses.build import build_loss
from indistill.losses.loss import Loss
from indistill.losses.options import LOGIT_LOSSES, TEMPERATURES, LossName, LossOptions, SupervisedName
from indistill.losses.pkt import PktLoss
from indistill.losses.regression import RegressionLoss
from indistill.runs.config import load_recipe

NAMES = ["pkt", "pkt-eccv", "kd", "dkd", "hint", "rkd", "sp", "contrastive", "regression"]
LEARNT = ["hint", "regression"]


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    torch.manual_seed(0)


def make_pair(name: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher of the widths of the paper's CIFAR-10 networks: embeddings, or logits that are surer."""
    generator = torch.Generator().manual_seed(seed)
    if name in LOGIT_LOSSES:
        return torch.randn(count, 10, generator=generator), 4 * torch.randn(count, 10, generator=generator)
    return torch.randn(count, 64, generator=generator), torch.randn(count, 512, generator=generator)


def make_loss(name: str, student: torch.Tensor, teacher: torch.Tensor) -> Loss:
    return build_loss(LossOptions(name), student.shape[1], teacher.shape[1])


def compute(loss: Loss, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        target = loss.prepare(teacher)
    return loss(student, target)


def measure_gradient(loss: Loss, student: torch.Tensor, teacher: torch.Tensor) -> float:
    student = student.clone().requires_grad_()
    return float(torch.autograd.grad(compute(loss, student, teacher), student)[0].norm())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_at_a_random_start_are_within_ten_times_those_of_a_thousand_pkt(name: str, seed: int) -> None:
    student, teacher = make_pair(name, 128, seed)
    loss, embeddings = make_loss(name, student, teacher), make_pair("pkt", 128, seed)
    assert 0.1 < measure_gradient(loss, student, teacher) / measure_gradient(PktLoss(1000), *embeddings) < 10
    if name not in LOGIT_LOSSES:  # after ReLU, as in the paper's networks, with rows that lie close together
        close = (student + 1).relu(), teacher.relu()
        assert 0.1 < measure_gradient(loss, *close) / measure_gradient(PktLoss(1000), *close) < 10


def test_the_comparison_of_gradients_can_fail() -> None:
    pair = make_pair("pkt", 128)
    assert measure_gradient(PktLoss(1), *pair) < 0.1 * measure_gradient(PktLoss(1000), *pair)


CORNERS = {
    "equal rows": lambda rows: rows[:1].expand_as(rows),
    "zero rows": lambda rows: torch.zeros_like(rows),
    "one zero row": lambda rows: torch.cat([torch.zeros_like(rows[:1]), rows[1:]]),
    "two equal rows": lambda rows: torch.cat([rows[1:2], rows[1:]]),
    "opposite rows": lambda rows: torch.cat([rows[:1], -rows[:1], rows[2:]]),
    "signed rows": lambda rows: rows,
    "large": lambda rows: 1e4 * rows,
    "small": lambda rows: 1e-4 * rows,
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [2, 6])
def test_losses_and_gradients_are_finite_in_the_corners(name: str, count: int) -> None:
    for corner, spoil in CORNERS.items():
        for side in ("student", "teacher", "both"):
            student, teacher = make_pair(name, count)
            student = (student if side == "teacher" else spoil(student)).clone().requires_grad_()
            teacher = teacher if side == "student" else spoil(teacher)
            loss = make_loss(name, student, teacher)
            value = compute(loss, student, teacher)
            learnt = list(loss.parameters()) if isinstance(loss, nn.Module) else []
            gradients = torch.autograd.grad(value, [student, *learnt])
            assert math.isfinite(float(value.detach())), (corner, side)
            assert all(torch.isfinite(gradient).all() for gradient in gradients), (corner, side)


NO_DIRECTION = dict.fromkeys(("pkt", "pkt-eccv", "sp", "contrastive", "regression"), "one zero row")


@pytest.mark.parametrize(("name", "corner"), [*NO_DIRECTION.items(), ("rkd", "two equal rows")])
def test_what_has_no_direction_pulls_no_harder_than_the_epsilon_allows(name: str, corner: str) -> None:
    student, teacher = make_pair(name, 6)
    loss = make_loss(name, student, teacher)
    if isinstance(loss, RegressionLoss):
        loss.projection.bias.data.zero_()
    assert measure_gradient(loss, CORNERS[corner](student), teacher) < 1e9  # 1e12 and more by the epsilon of PyTorch


def test_opposite_rows_never_round_to_a_logarithm_of_less_than_nothing() -> None:
    for _ in range(300):
        row = torch.randn(1, 64)
        student = torch.cat([row, -0.7 * row]).requires_grad_()
        value = compute(make_loss("pkt-eccv", student, student), student, torch.randn(2, 5))
        assert math.isfinite(float(value.detach()))
        assert torch.isfinite(torch.autograd.grad(value, student)[0]).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in LEARNT])
def test_losses_are_zero_at_equal_inputs_and_positive_elsewhere(name: str) -> None:
    student, _ = make_pair(name, 8)
    loss = make_loss(name, student, student)
    assert float(compute(loss, student, student)) == pytest.approx(0, abs=1e-5)
    assert float(compute(loss, student, student.flip(0))) > 1e-2


@pytest.mark.parametrize("name", LEARNT)
def test_learnt_losses_are_zero_through_the_identity(name: str) -> None:
    embeddings = torch.randn(8, 4)
    loss = make_loss(name, embeddings, embeddings)
    weight, bias = loss.parameters()
    assert float(compute(loss, embeddings, embeddings).detach()) > 1e-2
    with torch.no_grad():
        weight.copy_(torch.eye(4))
        bias.zero_()
    assert float(compute(loss, embeddings, embeddings).detach()) == pytest.approx(0, abs=1e-6)


def test_regression_is_of_directions_alone_and_hint_is_not() -> None:
    student, teacher = torch.randn(8, 4), torch.randn(8, 4)
    for name, alike in (("regression", True), ("hint", False)):
        loss = make_loss(name, student, teacher)
        longer = float(compute(loss, student, 3 * teacher).detach())
        assert (longer == pytest.approx(float(compute(loss, student, teacher).detach()), rel=1e-5)) == alike


@pytest.mark.parametrize("name", ["pkt", "pkt-eccv", "rkd", "sp", "contrastive"])
def test_relations_do_not_change_when_the_embedding_is_turned(name: str) -> None:
    student, teacher = make_pair(name, 8)
    rotation = torch.linalg.qr(torch.randn(64, 64)).Q
    loss = make_loss(name, student, teacher)
    expected = float(compute(loss, student, teacher))
    turned = float(compute(loss, student @ rotation, teacher))
    assert turned == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = (rows.to(dtype) for rows in make_pair(name, 8))
    loss = make_loss(name, student, teacher)
    value = compute(loss, student, teacher)
    assert value.dtype == torch.float32
    assert {part.dtype for part in loss.prepare(teacher)} <= {torch.float32, torch.int64}
    assert float(value.detach()) == pytest.approx(float(compute(loss, student.float(), teacher.float()).detach()))


@pytest.mark.parametrize("name", NAMES)
def test_losses_fall_when_the_embedding_follows_their_gradient(name: str) -> None:
    student, teacher = make_pair(name, 16)
    student.requires_grad_()
    loss = make_loss(name, student, teacher)
    optimiser = torch.optim.Adam([student, *(loss.parameters() if isinstance(loss, nn.Module) else [])], lr=0.05)
    values = []
    for _ in range(60):
        optimiser.zero_grad()
        value = compute(loss, student, teacher)
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.5 * values[0]


def test_dkd_is_finite_for_two_classes_and_for_a_sure_teacher() -> None:
    student = torch.randn(4, 2, requires_grad=True)
    teacher = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0], [3.0, 3.0], [0.0, 0.0]])
    for temperature in (1.0, 4.0):
        value = compute(build_loss(LossOptions("dkd", temperature=temperature), 2, 2), student, teacher)
        assert 0 < float(value.detach()) < 1e4
        assert torch.isfinite(torch.autograd.grad(value, student)[0]).all()


@pytest.mark.parametrize("name", TEMPERATURES)
def test_a_temperature_takes_the_place_of_the_default(name: str) -> None:
    student, teacher = make_pair(name, 8)
    widths = student.shape[1], teacher.shape[1]

    def measure(temperature: float | None) -> float:
        loss = build_loss(LossOptions(name, temperature=temperature), *widths)
        return float(compute(loss, student, teacher))

    assert measure(None) == measure(TEMPERATURES[name]) != pytest.approx(measure(1.5), rel=1e-3)


def test_settings_of_the_loss_are_validated() -> None:
    recipe = load_recipe("digits", {"loss.name": "contrastive", "loss.temperature": "0.2"})
    assert recipe.loss.options == LossOptions("contrastive", temperature=0.2)
    with pytest.raises(FrozenInstanceError):
        recipe.loss.options.name = "kd"
    expected = r"loss\.temperature: loss 'rkd' has none \(kd, dkd, contrastive have one\), leave it out, not 2\.0$"
    with pytest.raises(ConfigError, match=expected):
        load_recipe("digits", {"loss.name": "rkd", "loss.temperature": "2.0"})
    with pytest.raises(ConfigError, match=r"loss\.temperature: input should be greater than 0"):
        load_recipe("digits", {"loss.name": "kd", "loss.temperature": "0"})
    with pytest.raises(ConfigError, match=r"loss\.name: input should be 'pkt', .* 'regression' or 'pkth', not 'crd'"):
        load_recipe("digits", {"loss.name": "crd", "loss.temperature": "2"})


def test_the_page_of_losses_names_them_all() -> None:
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")
    assert [name for name in get_args(LossName) if f"| `{name}`" not in page] == []
    assert [name for name in get_args(SupervisedName) if f"`{name}`" not in page] == []

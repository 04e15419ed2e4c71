import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from indistill.losses.dkd import compute_dkd_loss
from indistill.losses.hint import HintLoss
from indistill.losses.pkt import EPSILON, compute_pkt_loss
from indistill.losses.pkt_eccv import compute_pkt_eccv_loss
from indistill.losses.registry import LOSSES, Loss, build_loss
from indistill.losses.regression import RegressionLoss


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    torch.manual_seed(0)


def compute_by_loops(student: list[list[float]], teacher: list[list[float]]) -> float:
    def cosine(x: list[float], y: list[float]) -> float:
        dot = sum(a * b for a, b in zip(x, y, strict=True))
        return (1 + dot / math.hypot(*x) / math.hypot(*y)) / 2

    def student_t(x: list[float], y: list[float]) -> float:
        return 1 / (1 + math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) + EPSILON))

    total, count = 0.0, len(student)
    for kernel in (cosine, student_t):
        for i in range(count):
            p_row = [kernel(teacher[i], teacher[j]) for j in range(count)]
            q_row = [kernel(student[i], student[j]) for j in range(count)]
            for p, q in zip(p_row, q_row, strict=True):
                p, q = p / sum(p_row), q / sum(q_row)
                total += (p - q) * (math.log(p + EPSILON) - math.log(q + EPSILON)) / count**2
    return total


@pytest.mark.parametrize("seed", range(5))
def test_pkt_equals_the_formula_by_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(7, 3, generator=generator, dtype=torch.float64).float()
    teacher = torch.randn(7, 5, generator=generator, dtype=torch.float64).float()
    expected = compute_by_loops(student.double().tolist(), teacher.double().tolist())
    # Not closer: on the diagonal aa + aa - 2aa leaves up to 1e-6 in float32, whose root is a distance of 1e-3.
    assert float(compute_pkt_loss(student, teacher)) == pytest.approx(expected, rel=5e-4)


def test_pkt_of_the_same_neighbourhood_is_zero() -> None:
    embeddings = torch.randn(6, 4)
    rotation = torch.linalg.qr(torch.randn(4, 4)).Q
    assert float(compute_pkt_loss(embeddings @ rotation, embeddings)) == pytest.approx(0, abs=1e-6)
    assert float(compute_pkt_loss(torch.randn(6, 4), embeddings)) > 1e-5


@pytest.mark.parametrize(
    "embeddings",
    [
        torch.tensor([[1.0, 0.0], [-1.0, 0.0]]),  # a cosine of -1
        torch.ones(4, 3),  # all distances are zero
        torch.zeros(4, 3),  # norms are zero
    ],
)
def test_pkt_and_its_gradient_are_finite_in_the_corners(embeddings: torch.Tensor) -> None:
    student = embeddings.clone().requires_grad_()
    loss = compute_pkt_loss(student, torch.randn(len(embeddings), 3))
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(student.grad).all()


def test_pkt_is_computed_in_float32_for_half_precision() -> None:
    student, teacher = torch.randn(8, 4), torch.randn(8, 4)
    loss = compute_pkt_loss(student.half(), teacher.half())
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(compute_pkt_loss(student, teacher)), rel=0.05)


def test_pkt_is_finite_for_opposite_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):  # some of these round to a cosine below -1, whose logarithm was not a number
        row = torch.randn(1, 64, generator=generator)
        student = torch.cat([row, -0.7 * row]).requires_grad_()
        for compute_loss in (compute_pkt_loss, compute_pkt_eccv_loss):
            loss = compute_loss(student, torch.randn(2, 5, generator=generator))
            assert math.isfinite(float(loss.detach()))
            assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


def test_pkt_is_multiplied_by_its_scale() -> None:
    student, teacher = torch.randn(8, 4), torch.randn(8, 5)
    loss = build_loss("pkt", student_dim=4, teacher_dim=5)(student, teacher)
    assert float(loss) == pytest.approx(1000 * float(compute_pkt_loss(student, teacher)), rel=1e-6)


def make_pair(name: str, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Student and teacher of the widths of the paper's CIFAR-10 networks: embeddings, or logits that are surer."""
    generator = torch.Generator().manual_seed(seed)
    if LOSSES[name].reads == "logits":
        return torch.randn(count, 10, generator=generator), 4 * torch.randn(count, 10, generator=generator)
    return torch.randn(count, 64, generator=generator), torch.randn(count, 512, generator=generator)


def measure_gradient(loss: torch.Tensor, student: torch.Tensor) -> float:
    return float(torch.autograd.grad(loss, student)[0].norm())


def compare_with_pkt(loss: Loss, student: torch.Tensor, teacher: torch.Tensor) -> float:
    """The gradient of a loss over that of 1000 * PKT."""
    student = student.clone().requires_grad_()
    return measure_gradient(loss(student, teacher), student) / measure_gradient(
        1000 * compute_pkt_loss(student, teacher), student
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_gradients_at_a_random_start_are_of_the_size_of_pkts(name: str, seed: int) -> None:
    student, teacher = make_pair(name, 128, seed)
    loss = build_loss(name, student_dim=student.shape[1], teacher_dim=teacher.shape[1])
    assert 1 / 100 < compare_with_pkt(loss, student, teacher) < 100
    if LOSSES[name].reads == "embedding":  # after ReLU, as in the paper's networks, with rows that lie close together
        assert 1 / 100 < compare_with_pkt(loss, (student + 1).relu(), teacher.relu()) < 100


def test_the_comparison_of_gradients_can_fail() -> None:
    student, teacher = make_pair("pkt", 128)
    assert compare_with_pkt(compute_pkt_loss, student, teacher) == pytest.approx(1 / 1000, rel=1e-2)
    assert compare_with_pkt(lambda s, t: compute_pkt_eccv_loss(s, t) / 10_000, student, teacher) < 1 / 100


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


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_losses_and_gradients_are_finite_in_the_corners(name: str, count: int, corner: str, side: str) -> None:
    student, teacher = make_pair(name, count)
    if side in ("student", "both"):
        student = CORNERS[corner](student)
    if side in ("teacher", "both"):
        teacher = CORNERS[corner](teacher)
    student = student.clone().requires_grad_()
    loss = build_loss(name, student_dim=student.shape[1], teacher_dim=teacher.shape[1])
    value = loss(student, teacher)
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert torch.isfinite(student.grad).all()
    if isinstance(loss, nn.Module):
        assert all(torch.isfinite(parameter.grad).all() for parameter in loss.parameters())


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if not kind.learns])
def test_losses_are_zero_at_equal_inputs_and_positive_elsewhere(name: str) -> None:
    student, _ = make_pair(name, 8)
    loss = build_loss(name, student_dim=student.shape[1], teacher_dim=student.shape[1])
    assert float(loss(student, student)) == pytest.approx(0, abs=1e-5)
    assert float(loss(student, student.flip(0))) > 1e-2


@pytest.mark.parametrize("loss", [HintLoss(4, 4), RegressionLoss(4, 4), RegressionLoss(4, 4, measure="mse")])
def test_learnt_losses_are_zero_through_the_identity(loss: nn.Module) -> None:
    weight, bias = loss.parameters()
    embeddings = torch.randn(8, 4)
    assert float(loss(embeddings, embeddings).detach()) > 1e-2
    with torch.no_grad():
        weight.copy_(torch.eye(4))
        bias.zero_()
    assert float(loss(embeddings, embeddings).detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["pkt", "pkt-eccv", "rkd", "sp", "contrastive"])
def test_relations_do_not_change_when_the_embedding_is_turned(name: str) -> None:
    student, teacher = make_pair(name, 8)
    rotation = torch.linalg.qr(torch.randn(64, 64)).Q
    loss = build_loss(name, student_dim=64, teacher_dim=512)
    expected = float(loss(student, teacher))
    assert float(loss(student @ rotation, teacher)) == pytest.approx(expected, rel=1e-2 if name == "pkt" else 1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = (rows.to(dtype) for rows in make_pair(name, 8))
    loss = build_loss(name, student_dim=student.shape[1], teacher_dim=teacher.shape[1])
    value = loss(student, teacher)
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(loss(student.float(), teacher.float()).detach()), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_fall_when_the_embedding_follows_their_gradient(name: str) -> None:
    student, teacher = make_pair(name, 16)
    student.requires_grad_()
    loss = build_loss(name, student_dim=student.shape[1], teacher_dim=teacher.shape[1])
    parameters = [student, *(loss.parameters() if isinstance(loss, nn.Module) else [])]
    optimiser = torch.optim.Adam(parameters, lr=0.05)
    values = []
    for _ in range(60):
        optimiser.zero_grad()
        value = loss(student, teacher)
        value.backward()
        optimiser.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.5 * values[0]


def test_dkd_is_finite_for_two_classes_and_for_a_sure_teacher() -> None:
    student = torch.randn(4, 2, requires_grad=True)
    teacher = torch.tensor([[1000.0, -1000.0], [-1000.0, 1000.0], [3.0, 3.0], [0.0, 0.0]])
    for temperature in (1.0, 4.0):
        loss = compute_dkd_loss(student, teacher, temperature=temperature)
        assert 0 < float(loss.detach()) < 1e4
        assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


def test_dkd_takes_the_teachers_choice_where_no_label_is_given() -> None:
    student, teacher = make_pair("dkd", 8)
    choice = teacher.argmax(1)
    loss = float(compute_dkd_loss(student, teacher))
    assert loss == float(compute_dkd_loss(student, teacher, choice))
    assert loss != pytest.approx(float(compute_dkd_loss(student, teacher, (choice + 1) % 10)), rel=1e-3)


def test_dkd_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="at least two classes, not of 1"):
        compute_dkd_loss(torch.randn(4, 1), torch.randn(4, 1))


@pytest.mark.parametrize(
    ("loss", "student", "teacher"),
    [
        (HintLoss(3, 4), (2, 3), (2, 1)),
        (HintLoss(3, 4), (2, 3, 5, 5), (2, 4, 1, 1)),
        (RegressionLoss(3, 4), (2, 3), (1, 4)),
    ],
)
def test_learnt_losses_refuse_shapes_that_would_broadcast(
    loss: nn.Module, student: tuple[int, ...], teacher: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="the teacher's are"):
        loss(torch.randn(student), torch.randn(teacher))


def test_the_table_says_what_the_losses_are() -> None:
    assert list(LOSSES) == ["pkt", "pkt-eccv", "kd", "dkd", "hint", "rkd", "sp", "contrastive", "regression"]
    assert {name for name, kind in LOSSES.items() if kind.reads == "logits"} == {"kd", "dkd"}
    for name, kind in LOSSES.items():
        loss = build_loss(name, student_dim=4, teacher_dim=4)
        assert isinstance(loss, nn.Module) == kind.learns
    with pytest.raises(FrozenInstanceError):
        LOSSES["pkt"].reads = "logits"


@pytest.mark.parametrize("name", [name for name, kind in LOSSES.items() if kind.temperature])
def test_a_temperature_takes_the_place_of_the_default(name: str) -> None:
    student, teacher = make_pair(name, 8)
    widths = {"student_dim": student.shape[1], "teacher_dim": teacher.shape[1]}
    default = float(build_loss(name, **widths)(student, teacher))
    assert default == float(build_loss(name, **widths, temperature=LOSSES[name].temperature)(student, teacher))
    assert default != pytest.approx(float(build_loss(name, **widths, temperature=1.5)(student, teacher)), rel=1e-3)


def test_what_cannot_be_built_is_refused() -> None:
    names = "pkt, pkt-eccv, kd, dkd, hint, rkd, sp, contrastive, regression"
    with pytest.raises(ValueError, match=f"^loss 'crd' is not one of {names}$"):
        build_loss("crd", student_dim=4, teacher_dim=4)
    with pytest.raises(ValueError, match=r"^loss 'rkd' has no temperature, 2\.0 was given$"):
        build_loss("rkd", student_dim=4, teacher_dim=4, temperature=2.0)
    with pytest.raises(ValueError, match="needs a temperature above zero, 0 was given"):
        build_loss("kd", student_dim=4, teacher_dim=4, temperature=0)
    with pytest.raises(ValueError, match=r"needs logits of one width, not 10 \(student\) and 4"):
        build_loss("kd", student_dim=10, teacher_dim=4)

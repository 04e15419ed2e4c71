import math

import pytest
import torch

from indistill.losses.pkt import (
    EPSILON,
    compute_cosine_kernel,
    compute_probabilities,
    compute_products,
    compute_student_t_kernel,
)
from indistill.losses.pkt import compute_pkt_loss as compute_from_target


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    torch.manual_seed(0)


def compute_pkt_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return compute_from_target(student, compute_probabilities(teacher))


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


def test_kernels_by_hand() -> None:
    products = compute_products(torch.tensor([[3.0, 0.0], [0.0, 4.0], [-6.0, 0.0]]))
    assert products.tolist() == [[9, 0, -18], [0, 16, 0], [-18, 0, 36]]
    cosine, student_t = compute_cosine_kernel(products), compute_student_t_kernel(products)
    assert cosine.flatten().tolist() == pytest.approx([1, 0.5, 0, 0.5, 1, 0.5, 0, 0.5, 1])
    assert compute_cosine_kernel(1e-10 * products).flatten().tolist() == pytest.approx(
        cosine.flatten().tolist(), abs=1e-6
    )
    assert student_t[0].tolist() == pytest.approx([1, 1 / 6, 1 / 10], abs=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_pkt_equals_the_formula_by_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(7, 3, generator=generator, dtype=torch.float64).float()
    teacher = torch.randn(7, 5, generator=generator, dtype=torch.float64).float()
    expected = compute_by_loops(student.double().tolist(), teacher.double().tolist())
    assert float(compute_pkt_loss(student, teacher)) == pytest.approx(expected, rel=1e-5)


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
    for _ in range(500):  # some of these round to a cosine below -1, whose logarithm was not a number
        row = torch.randn(1, 64)
        student = torch.cat([row, -0.7 * row]).requires_grad_()
        loss = compute_pkt_loss(student, torch.randn(2, 5))
        assert math.isfinite(float(loss.detach()))
        assert torch.isfinite(torch.autograd.grad(loss, student)[0]).all()

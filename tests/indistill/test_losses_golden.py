"""Each loss against its formula, by loops over single numbers."""

import math
from collections.abc import Callable

import pytest
import torch

from indistill.losses.contrastive import ContrastiveLoss
from indistill.losses.dkd import DkdLoss
from indistill.losses.hint import HintLoss, build_regressor
from indistill.losses.kd import KdLoss
from indistill.losses.loss import Loss
from indistill.losses.pkt import EPSILON, PktLoss
from indistill.losses.pkt_eccv import PktEccvLoss
from indistill.losses.pkth import weigh_stages
from indistill.losses.regression import RegressionLoss
from indistill.losses.rkd import RkdLoss
from indistill.losses.sp import SpLoss
from indistill.losses.supervised import CrossEntropyLoss

Rows = list[list[float]]

SEEDS = range(3)


@pytest.fixture(autouse=True)
def seed_torch() -> None:
    torch.manual_seed(0)


def draw(seed: int, count: int = 6, student_dim: int = 3, teacher_dim: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, student_dim, generator=generator),
        3 * torch.randn(count, teacher_dim, generator=generator),
    )


def compute(loss: Loss, student: torch.Tensor, teacher: torch.Tensor) -> float:
    return float(loss(student, loss.prepare(teacher)).detach())


def check(loss: Loss, expect: Callable[[Rows, Rows], float], student: torch.Tensor, teacher: torch.Tensor) -> None:
    expected = expect(student.double().tolist(), teacher.double().tolist())
    assert abs(expected) > 1e-2  # else the comparison says little
    assert compute(loss, student, teacher) == pytest.approx(expected, rel=1e-5)


def dot(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def cosine(x: list[float], y: list[float]) -> float:
    return dot(x, y) / math.hypot(*x) / math.hypot(*y)


def subtract(x: list[float], y: list[float]) -> list[float]:
    return [a - b for a, b in zip(x, y, strict=True)]


def soften(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


def diverge(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def huber(x: float, y: float) -> float:
    return (x - y) ** 2 / 2 if abs(x - y) < 1 else abs(x - y) - 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_pkt_eccv_equals_the_formula_by_loops(seed: int) -> None:
    def expect(student: Rows, teacher: Rows) -> float:
        total, count = 0.0, len(student)
        for i in range(count):
            p_row = [(1 + cosine(teacher[i], teacher[j])) / 2 for j in range(count)]
            q_row = [(1 + cosine(student[i], student[j])) / 2 for j in range(count)]
            for a, b in zip(p_row, q_row, strict=True):
                p, q = a / sum(p_row), b / sum(q_row)
                total += p * (math.log(p + EPSILON) - math.log(q + EPSILON))
        return 10_000 * total / count**2

    student, teacher = draw(seed)
    check(PktEccvLoss(), expect, student, teacher)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_kd_equals_the_formula_by_loops(seed: int, temperature: float) -> None:
    def expect(student: Rows, teacher: Rows) -> float:
        total = sum(
            diverge(soften(t, temperature), soften(s, temperature)) for s, t in zip(student, teacher, strict=True)
        )
        return temperature**2 * total / len(student)

    student, teacher = draw(seed, 5, 4, 4)
    check(KdLoss(temperature), expect, student, teacher)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_dkd_equals_the_formula_by_loops(seed: int, temperature: float) -> None:
    def expect(student: Rows, teacher: Rows) -> float:
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            target = t.index(max(t))
            p, q = soften(t, temperature), soften(s, temperature)
            p_target, q_target = p.pop(target), q.pop(target)
            tckd = diverge([p_target, 1 - p_target], [q_target, 1 - q_target])
            nckd = diverge([x / (1 - p_target) for x in p], [x / (1 - q_target) for x in q])
            total += tckd + 8 * nckd
        return 0.2 * temperature**2 * total / len(student)

    student, teacher = draw(seed, 5, 4, 4)
    check(DkdLoss(temperature), expect, student, teacher)


@pytest.mark.parametrize("seed", SEEDS)
def test_hint_equals_the_formula_by_loops(seed: int) -> None:
    loss = HintLoss(3, 4)
    weight, bias = loss.regressor.weight.double().tolist(), loss.regressor.bias.double().tolist()

    def expect(student: Rows, teacher: Rows) -> float:
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            for k, target in enumerate(t):
                total += (dot(weight[k], s) + bias[k] - target) ** 2
        return 4 * total / len(student) / len(teacher[0])

    student, teacher = draw(seed)
    check(loss, expect, student, teacher)


@pytest.mark.parametrize("seed", SEEDS)
def test_regression_equals_the_formula_by_loops(seed: int) -> None:
    loss = RegressionLoss(3, 4)
    weight, bias = loss.projection.weight.double().tolist(), loss.projection.bias.double().tolist()

    def expect(student: Rows, teacher: Rows) -> float:
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            total += 1 - cosine([dot(row, s) + offset for row, offset in zip(weight, bias, strict=True)], t)
        return 4 * total / len(student)

    student, teacher = draw(seed)
    check(loss, expect, student, teacher)


@pytest.mark.parametrize("seed", SEEDS)
def test_rkd_equals_the_formula_by_loops(seed: int) -> None:
    def measure_distances(rows: Rows) -> dict[tuple[int, int], float]:
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        distances = {(i, j): math.dist(rows[i], rows[j]) for i, j in pairs}
        mean = sum(distances.values()) / len(distances)
        return {pair: distance / mean for pair, distance in distances.items()}

    def expect(student: Rows, teacher: Rows) -> float:
        s, t = measure_distances(student), measure_distances(teacher)
        distance = sum(huber(s[pair], t[pair]) for pair in s) / len(s)
        angle, triples = 0.0, 0
        for i in range(len(student)):
            for j in range(len(student)):
                for k in range(len(student)):
                    if len({i, j, k}) == 3:
                        s_angle = cosine(subtract(student[i], student[j]), subtract(student[k], student[j]))
                        t_angle = cosine(subtract(teacher[i], teacher[j]), subtract(teacher[k], teacher[j]))
                        angle += huber(s_angle, t_angle)
                        triples += 1
        return 25 * distance + 50 * angle / triples

    student, teacher = draw(seed)
    student[0] *= 8  # an outlier, so that some differences are above 1, where Huber's loss is straight
    s, t = measure_distances(student.tolist()), measure_distances(teacher.tolist())
    assert max(abs(s[pair] - t[pair]) for pair in s) > 1
    check(RkdLoss(), expect, student, teacher)


def test_rkd_of_two_rows_is_zero_for_there_is_one_distance_and_no_angle() -> None:
    student, teacher = draw(0, count=2)
    assert compute(RkdLoss(), student, teacher) == pytest.approx(0, abs=1e-9)
    assert compute(RkdLoss(), torch.ones(2, 3), teacher) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_sp_equals_the_formula_by_loops(seed: int) -> None:
    def expect(student: Rows, teacher: Rows) -> float:
        total, count = 0.0, len(student)
        for i in range(count):
            s_row = [dot(student[i], other) for other in student]
            t_row = [dot(teacher[i], other) for other in teacher]
            for s, t in zip(s_row, t_row, strict=True):
                total += (s / math.hypot(*s_row) - t / math.hypot(*t_row)) ** 2
        return 300 * total / count**2

    student, teacher = draw(seed)
    check(SpLoss(), expect, student, teacher)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_contrastive_equals_the_formula_by_loops(seed: int, temperature: float) -> None:
    def expect(student: Rows, teacher: Rows) -> float:
        divergence, squares, count = 0.0, 0.0, len(student)
        for i in range(count):
            others = [j for j in range(count) if j != i]
            s_row = [cosine(student[i], student[j]) for j in others]
            t_row = [cosine(teacher[i], teacher[j]) for j in others]
            divergence += diverge(soften(t_row, temperature), soften(s_row, temperature))
            squares += sum((s - t) ** 2 for s, t in zip(s_row, t_row, strict=True))
        return divergence / count + 10 * squares / (count * (count - 1))

    student, teacher = draw(seed)
    check(ContrastiveLoss(temperature), expect, student, teacher)


def test_pkt_flattens_the_maps_of_a_stage_and_is_times_its_scale() -> None:
    def student_t(x: list[float], y: list[float]) -> float:
        return 1 / (1 + math.sqrt(math.dist(x, y) ** 2 + EPSILON))

    def shift(x: list[float], y: list[float]) -> float:
        return (1 + cosine(x, y)) / 2

    def expect(student: Rows, teacher: Rows) -> float:
        total, count = 0.0, len(student)
        for kernel in (shift, student_t):
            for i in range(count):
                p_row = [kernel(teacher[i], other) for other in teacher]
                q_row = [kernel(student[i], other) for other in student]
                for a, b in zip(p_row, q_row, strict=True):
                    p, q = a / sum(p_row), b / sum(q_row)
                    total += (p - q) * (math.log(p + EPSILON) - math.log(q + EPSILON))
        return 700 * total / count**2

    student, teacher = torch.randn(5, 2, 3, 3), torch.randn(5, 7, 2, 2)
    expected = expect(*([[float(x) for x in row.flatten()] for row in maps] for maps in (student, teacher)))
    assert compute(PktLoss(700), student, teacher) == pytest.approx(expected, rel=1e-5)


def test_the_stages_of_pkth_begin_at_a_hundred_and_lose_three_tenths_an_epoch() -> None:
    assert [weigh_stages(epoch) for epoch in range(3)] == pytest.approx([100, 70, 49])


def test_cross_entropy_equals_the_formula_by_loops() -> None:
    student, labels = torch.randn(5, 3), torch.tensor([2, 0, 1, 1, 2])
    rows = [soften(row, 1.0) for row in student.tolist()]
    expected = -sum(math.log(row[label]) for row, label in zip(rows, labels.tolist(), strict=True)) / 5
    assert compute(CrossEntropyLoss(), student, labels) == pytest.approx(expected, rel=1e-5)


def test_the_regressor_of_a_stage_maps_its_channels_at_each_position() -> None:
    maps, vectors = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    regressor = build_regressor(3, 5, maps=True)
    at_a_position = regressor(maps[:, :, 1:2, 2:3])
    assert torch.allclose(regressor(maps)[:, :, 1:2, 2:3], at_a_position, atol=1e-6)
    assert at_a_position.shape == (2, 5, 1, 1)
    assert build_regressor(3, 5, maps=False)(vectors).shape == (2, 5)

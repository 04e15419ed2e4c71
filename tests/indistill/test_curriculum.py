import pytest
from hypothesis import given
from hypothesis import strategies as st

from indistill.curriculum import (
    Phase,
    build_curriculum,
    build_supervised,
    build_warm_up,
    count_epochs,
    scale_epochs,
)


def test_the_papers_schedule_is_12_warm_up_48_pkt_and_10_final_epochs() -> None:
    phases = build_curriculum(build_warm_up(3, 2, 1e-3), 60, 1e-3, (10, 1e-4))
    assert [(p.objective, p.stage, p.epochs, p.lr) for p in phases] == [
        ("stage", 1, 3, 1e-3),
        ("stage", 2, 4, 1e-3),
        ("stage", 3, 5, 1e-3),
        ("embedding", 0, 48, 1e-3),
        ("embedding", 0, 10, 1e-4),
    ]


def test_without_warm_up_the_embedding_has_all_epochs() -> None:
    phases = build_curriculum((), 60, 1e-3, (10, 1e-4))
    assert [p.epochs for p in phases] == [60, 10]


def test_supervised_baselines_have_80_epochs() -> None:
    assert count_epochs(build_supervised(50, 1e-3, (30, 1e-4))) == 80


def test_scaling_to_the_same_total_changes_nothing() -> None:
    phases = build_curriculum(build_warm_up(3, 2, 1e-3), 60, 1e-3, (10, 1e-4))
    assert scale_epochs(phases, 70) == phases
    assert [p.epochs for p in scale_epochs(phases, 140)] == [6, 8, 10, 96, 20]


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.integers(1, 400))
def test_scaling_gives_the_total_and_leaves_every_phase_an_epoch(epochs: list[int], total: int) -> None:
    phases = tuple(Phase(f"p{i}", "embedding", 0, count, 1e-3) for i, count in enumerate(epochs))
    scaled = scale_epochs(phases, total)
    assert count_epochs(scaled) == max(total, len(phases))
    assert min(p.epochs for p in scaled) >= 1


def test_no_epochs_cannot_be_scaled_to() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        scale_epochs(build_supervised(5, 1e-3, (0, 1e-4)), 0)

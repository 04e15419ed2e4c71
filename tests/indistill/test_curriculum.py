import pytest
from hypothesis import given
from hypothesis import strategies as st

from indistill.curriculum.phases import (
    Phase,
    arrange_warm_up,
    build_curriculum,
    build_supervised,
    build_warm_up,
    count_epochs,
    end_phase,
    has_stalled,
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


@pytest.mark.parametrize(("epochs", "embedding"), [(14, 2), (13, 1), (12, 1), (5, 1)])
def test_the_embedding_has_what_the_warm_up_leaves_and_one_epoch_at_least(epochs: int, embedding: int) -> None:
    phases = build_curriculum(build_warm_up(3, 2, 1e-3), epochs, 1e-3, (0, 1e-4))
    assert [p.epochs for p in phases] == [3, 4, 5, embedding]  # and no final phase of no epochs


def test_supervised_baselines_have_50_epochs_and_30_final_ones() -> None:
    first, last = build_supervised(50, 1e-3, (30, 1e-4))
    assert first == Phase("classes", "classes", 0, 50, 1e-3)
    assert last == Phase("classes, final", "classes", 0, 30, 1e-4)


def test_phases_are_named_as_progress_and_report_call_them() -> None:
    phases = build_curriculum(build_warm_up(2, 2, 1e-3), 60, 1e-3, (10, 1e-4))
    assert [p.name for p in phases] == ["stage 1", "stage 2", "embedding", "embedding, final"]
    warm_up = (Phase("stage 1", "stage", 1, 3, 0.1), Phase("stage 2", "stage", 2, 4, 0.2))
    assert arrange_warm_up(warm_up, "joint", 0.1) == (Phase("all stages", "joint", 0, 7, 0.1),)


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


def scale(epochs: list[int], total: int) -> list[int]:
    phases = tuple(Phase(f"p{i}", "embedding", 0, count, 1e-3) for i, count in enumerate(epochs))
    return [p.epochs for p in scale_epochs(phases, total)]


def test_epochs_that_do_not_divide_go_to_the_largest_remainders() -> None:
    assert scale([1, 7, 3], 22) == [2, 14, 6]
    # 5/6, 5/3 and 5/2 of 5 epochs: beyond one each 0, 2/3 and 3/2 parts of 2 epochs, 0.6 and 1.4.
    assert scale([10, 20, 30], 5) == [1, 2, 2]
    assert scale([30, 20, 10], 5) == [2, 2, 1]
    assert scale([1, 1, 1], 5) == [2, 2, 1]  # of equal remainders the first


def test_a_phase_below_one_epoch_takes_none_from_the_others() -> None:
    # 1 : 1 : 38 of 10 epochs is 1/4, 1/4 and 9 1/2, so that the two short phases keep one each, and the long one has 8.
    assert scale([1, 1, 38], 10) == [1, 1, 8]
    # 1 : 10 : 29 of 10 is 1/4, 2 1/2 and 7 1/4: beyond one each 0, 1 1/2 and 6 1/4 parts of 7 epochs, 1.35 and 5.65.
    assert scale([1, 10, 29], 10) == [1, 2, 7]


def test_one_epoch_can_be_scaled_to_and_every_phase_keeps_one() -> None:
    assert scale([5, 5], 1) == [1, 1]


def test_no_epochs_cannot_be_scaled_to() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        scale_epochs(build_supervised(5, 1e-3, (0, 1e-4)), 0)


PAPER = build_warm_up(3, 2, 1e-3)


def test_every_arrangement_of_the_stages_has_as_many_epochs() -> None:
    kinds = ("paper", "joint", "reversed", "equal", "adaptive")
    arranged = {kind: arrange_warm_up(PAPER, kind, 0.1) for kind in kinds}
    assert arranged["paper"] == PAPER
    assert [(p.objective, p.stage, p.epochs) for p in arranged["joint"]] == [("joint", 0, 12)]
    assert [(p.stage, p.epochs) for p in arranged["reversed"]] == [(3, 5), (2, 4), (1, 3)]
    assert [(p.stage, p.epochs) for p in arranged["equal"]] == [(1, 4), (2, 4), (3, 4)]
    assert [(p.stage, p.epochs, p.tolerance) for p in arranged["adaptive"]] == [(1, 3, 0.1), (2, 4, 0.1), (3, 5, 0.1)]
    assert arrange_warm_up(PAPER, "none", 0.1) == arrange_warm_up((), "joint", 0.1) == ()


def test_equal_shares_that_do_not_divide_go_to_the_later_stages() -> None:
    assert [p.epochs for p in arrange_warm_up(build_warm_up(4, 0, 1e-3), "equal", 0.1)] == [2, 2, 3, 3]


def test_a_stage_has_stalled_when_its_loss_falls_by_less_than_its_share() -> None:
    assert not has_stalled([1.0, 0.5], 0.0)
    assert not has_stalled([1.0], 0.1)
    assert not has_stalled([1.0, 0.9, 0.8], 0.1)
    assert has_stalled([1.0, 0.5, 0.46], 0.1)
    assert has_stalled([1.0, 1.1], 0.1)
    assert not has_stalled([1.0, 0.75], 0.25)  # by exactly its share


def test_without_a_tolerance_no_stage_stalls_though_its_loss_rises() -> None:
    assert not has_stalled([1.0, 2.0], 0.0)


def test_what_a_stage_leaves_goes_to_the_embedding_after_it() -> None:
    phases = build_curriculum(PAPER, 60, 1e-3, (10, 1e-4))
    assert end_phase(phases, [3, 4, 5, 48, 10], 1, 2) == [3, 2, 5, 50, 10]
    assert end_phase(phases, [3, 4, 5, 48, 10], 3, 40) == [3, 4, 5, 40, 18]  # its own epochs go to the final ones

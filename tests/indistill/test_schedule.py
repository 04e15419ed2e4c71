import warnings

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from indistill.curriculum.schedule import Optimisation, compute_rate_factor

TOTAL, EPOCH = 40, 10


def list_factors(options: Optimisation) -> list[float]:
    return [compute_rate_factor(options, position, TOTAL, EPOCH) for position in range(TOTAL)]


def list_torchs(make) -> list[float]:
    """Returns the learning rates that a scheduler of PyTorch gives to a rate of one."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler: LRScheduler = make(optimiser)
    rates = []
    for _ in range(TOTAL):
        rates.append(optimiser.param_groups[0]["lr"])
        with warnings.catch_warnings(action="ignore"):  # no step was taken
            scheduler.step()
    return rates


def test_a_constant_rate_is_exactly_that_of_the_phase() -> None:
    assert list_factors(Optimisation()) == [1.0] * TOTAL


def test_cosine_is_pytorchs() -> None:
    expected = list_torchs(lambda optimiser: CosineAnnealingLR(optimiser, TOTAL))
    assert list_factors(Optimisation(schedule="cosine")) == pytest.approx(expected)


def test_step_is_pytorchs_with_milestones_as_shares() -> None:
    options = Optimisation(schedule="step", milestones=(0.25, 0.7), gamma=0.2)
    expected = list_torchs(lambda optimiser: MultiStepLR(optimiser, [10, 28], 0.2))
    assert list_factors(options) == pytest.approx(expected)


def test_a_warm_up_rises_to_the_full_rate_and_the_schedule_takes_the_rest() -> None:
    factors = list_factors(Optimisation(schedule="cosine", warmup_epochs=0.5))
    assert factors[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert factors[-1] < 0.01


def test_a_warm_up_longer_than_the_training_only_rises() -> None:
    factors = list_factors(Optimisation(schedule="step", warmup_epochs=8))
    assert factors == sorted(factors)
    assert factors[-1] == pytest.approx(0.5)


def test_a_warm_up_that_ends_within_a_batch_never_exceeds_the_full_rate() -> None:
    factors = list_factors(Optimisation(schedule="cosine", warmup_epochs=0.25))
    assert factors[:3] == pytest.approx([0.4, 0.8, 1.0])
    assert max(factors) == 1


def test_what_is_left_after_a_warm_up_may_be_shorter_than_two_batches() -> None:
    options = Optimisation(schedule="cosine", warmup_epochs=3.85)
    assert list_factors(options)[-1] == pytest.approx(0.75)  # a third of the 1.5 batches: (1 + cos(60 degrees)) / 2
    assert compute_rate_factor(Optimisation(schedule="cosine", warmup_epochs=4), 40, TOTAL, EPOCH) == 1

import copy

import torch
from torch import nn

from indistill.curriculum.schedule import Optimisation
from indistill.tensors import copy_tensors, list_tensors
from indistill.training.optimiser import average_weights, make_optimiser


def step_once(optimiser: torch.optim.Adam, network: nn.Module) -> None:
    torch.manual_seed(1)
    optimiser.zero_grad()
    network(torch.randn(8, 3)).square().sum().backward()
    optimiser.step()


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_weight_decay_spares_biases_and_norms() -> None:
    plain, decayed = make_network(), make_network()
    step_once(make_optimiser(plain, nn.Module(), Optimisation()), plain)
    optimiser = make_optimiser(decayed, nn.Module(), Optimisation(weight_decay=0.5))
    step_once(optimiser, decayed)
    start = dict(make_network().named_parameters())
    for name, parameter in decayed.named_parameters():
        expected = plain.get_parameter(name) - (1e-3 * 0.5 * start[name] if parameter.dim() > 1 else 0)
        assert torch.allclose(parameter, expected, atol=1e-7), name


def test_moments_of_the_student_are_carried_over_and_those_of_what_is_dropped_are_not() -> None:
    network, learnt = make_network(), nn.Linear(2, 2)
    both = nn.Sequential(network, learnt)
    first = make_optimiser(network, learnt, Optimisation())
    step_once(first, both)
    second = make_optimiser(network, nn.Linear(2, 2), Optimisation(), first)
    assert set(second.state) == set(network.parameters())
    assert all(second.state[p] is first.state[p] for p in network.parameters())


def test_the_average_is_that_of_a_loop_and_takes_batch_norms_statistics_along() -> None:
    network, decay = make_network(), 0.8
    averaged = average_weights(network, decay)
    expected: dict[str, torch.Tensor] = {}
    optimiser = make_optimiser(network, nn.Module(), Optimisation())
    for _ in range(4):
        step_once(optimiser, network)
        averaged.update_parameters(network)
        now = {name: value.clone() for name, value in list_tensors(network).items() if value.is_floating_point()}
        expected = {n: decay * expected[n] + (1 - decay) * v if expected else v for n, v in now.items()}
    found = list_tensors(averaged.module)
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())
    assert {"1.running_mean", "1.running_var"} < set(expected)
    assert average_weights(network, 0) is None


def test_tensors_are_copied_in_place() -> None:
    network, shared = make_network(), nn.Module()
    shared.layer = network[0]
    copy_tensors(network, {name: value + 1 for name, value in copy.deepcopy(list_tensors(network)).items()})
    assert torch.equal(shared.layer.weight, make_network()[0].weight + 1)

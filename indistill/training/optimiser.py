"""Adam over the student and what is learnt beside it, and the moving average of the student's weights."""

from torch import nn
from torch.optim import Adam, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from indistill.curriculum.schedule import Optimisation


def make_optimiser(student: nn.Module, learnt: nn.Module, options: Optimisation, carried: Adam | None = None) -> Adam:
    """Returns Adam over all parameters of both.

    Args:
        student: the network that is kept.
        learnt: what is dropped after the phase.
        options: gives the second moment's decay and the weight decay.
        carried: an earlier optimiser whose moments go on, of the parameters that are still there.
    """
    parameters = [*student.parameters(), *learnt.parameters()]
    betas = (0.9, options.beta2)
    if options.weight_decay:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimiser: Adam = AdamW([group for group in groups if group["params"]], betas=betas, fused=True)
    else:
        optimiser = Adam(parameters, betas=betas, fused=True)
    if carried is not None:
        optimiser.state.update({p: carried.state[p] for p in parameters if p in carried.state})
    return optimiser


def average_weights(student: nn.Module, decay: float) -> AveragedModel | None:
    """Returns a moving average that starts at the student's weights, or None for a decay of zero.

    Buffers are averaged like weights: the statistics of batch norm then belong to about the same steps as the weights.
    """
    if not decay:
        return None
    average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(student, multi_avg_fn=average, use_buffers=True)

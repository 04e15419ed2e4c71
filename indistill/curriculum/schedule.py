"""How a phase is optimised, as data, and the learning rate as a pure function of the position. Needs no torch."""

import math
from dataclasses import dataclass
from typing import Literal

Restart = Literal["never", "phase", "epoch"]
Schedule = Literal["constant", "cosine", "step"]


@dataclass(frozen=True)
class Optimisation:
    """How Adam is run. The defaults are plain Adam at the learning rate of each phase.

    Attributes:
        restart: when Adam starts anew; `phase` is each time that the loss becomes another one.
        beta2: decay of Adam's second moment.
        schedule: what each phase's learning rate is multiplied by; see `compute_rate_factor`.
        milestones: where `step` lowers the rate, as shares of the whole training.
        gamma: what `step` multiplies the rate by at each milestone.
        warmup_epochs: epochs, at the start of the whole training, in which the rate rises to its full value.
        clip: largest norm of the gradient of a batch; 0 for no limit.
        ema: decay of the moving average of the weights, which is then what training ends with; 0 for none.
        weight_decay: decoupled weight decay (AdamW) of matrices and filters; biases and norms have none.
    """

    restart: Restart = "never"
    beta2: float = 0.999
    schedule: Schedule = "constant"
    milestones: tuple[float, ...] = (0.5, 0.75)
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    weight_decay: float = 0.0


def compute_rate_factor(options: Optimisation, position: int, total: int, epoch: int) -> float:
    """Returns what the learning rate of a phase is multiplied by, in [0, 1].

    The position is that in the whole training, all phases together, so that a short phase is not annealed by itself. A
    warm-up rises linearly; `cosine` and `step` take what is left after it.

    Args:
        options: gives schedule and warm-up.
        position: batches done before this one.
        total: batches of the whole training.
        epoch: batches of an epoch.

    Reference: closed forms of PyTorch's LinearLR, CosineAnnealingLR and MultiStepLR.
    """
    warm_up = options.warmup_epochs * epoch
    if position < warm_up:
        return min(1.0, (position + 1) / warm_up)
    share = (position - warm_up) / max(1.0, total - warm_up)
    match options.schedule:
        case "constant":
            return 1.0
        case "cosine":
            return (1 + math.cos(math.pi * share)) / 2
        case "step":
            return math.prod(options.gamma for milestone in options.milestones if share >= milestone)

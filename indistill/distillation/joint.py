"""All stages at once: the curriculum's counterpart, to measure what the order of the stages is worth."""

from collections.abc import Sequence

from torch import Tensor, nn

from indistill.training.loop import Step, Target


class JointStep:
    """The sum of the losses of several steps of one student.

    Each step runs its own layers, so that the first layers run once for each step.

    Args:
        steps: at least one.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self.network = nn.ModuleList(step.network for step in steps)
        self.learnt = nn.ModuleList(step.learnt for step in steps)

    def begin_epoch(self, epoch: int) -> None:
        """Begins the epoch of each step."""
        for step in self.steps:
            step.begin_epoch(epoch)

    def prepare(self, images: Tensor, labels: Tensor, /) -> Target:
        """Returns the targets of all steps for images (B, 3, H, W)."""
        return tuple(step.prepare(images, labels) for step in self.steps)

    def __call__(self, images: Tensor, target: Target, /) -> Tensor:
        """Returns the summed loss of images (B, 3, H, W)."""
        losses = [step(images, part) for step, part in zip(self.steps, target, strict=True)]
        loss = losses[0]
        for other in losses[1:]:
            loss = loss + other
        return loss

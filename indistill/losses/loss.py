"""What a loss of the embedding stage is: two halves, so that the teacher's is computed once, beside the student."""

from typing import Protocol

from torch import Tensor

Target = tuple[Tensor, ...]


class Loss(Protocol):
    """A loss between what a student and a teacher give for the same images.

    One with parameters of its own, as a regressor, is an `nn.Module` besides; they are trained beside the student.
    """

    def prepare(self, teacher: Tensor, /) -> Target:
        """Returns all that needs the teacher alone, float32 (class indices int64).

        Args:
            teacher: embeddings or logits (N, D_t), of any float type; for a supervised loss the labels (N,) int64.
        """

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns a scalar float32.

        Args:
            student: embeddings or logits (N, D_s), of any float type.
            target: of the same images, by `prepare`.
        """

"""Losses of the labels, which may stand beside the distillation: cross-entropy, or metric learning on the embedding."""

from torch import Tensor, nn
from torch.nn import functional as F

from indistill.errors import InputError
from indistill.losses.loss import Loss, Target
from indistill.losses.options import SupervisedName


class CrossEntropyLoss:
    """Cross-entropy of the student's logits, the mean over the batch."""

    def prepare(self, labels: Tensor, /) -> Target:
        """Returns the labels (N,) int64 as they are."""
        return (labels,)

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of logits (N, C)."""
        (labels,) = target
        return F.cross_entropy(student.float(), labels)


class MetricLearningLoss:
    """A loss of pytorch-metric-learning with its defaults, on the normalised embeddings; zero for a batch in which no
    two images have the same label.

    Args:
        criterion: takes embeddings (N, D) and labels (N,).
    """

    def __init__(self, criterion: nn.Module) -> None:
        self.criterion = criterion

    def prepare(self, labels: Tensor, /) -> Target:
        """Returns the labels (N,) int64 as they are."""
        return (labels,)

    def __call__(self, student: Tensor, target: Target, /) -> Tensor:
        """Returns the loss of embeddings (N, D)."""
        (labels,) = target
        loss: Tensor = self.criterion(student.float(), labels)
        return loss


def build_supervised_loss(name: SupervisedName) -> Loss:
    """Returns the loss of a name other than `none`.

    Reference: `triplet`: Weinberger and Saul, JMLR 2009, and Schroff et al., "FaceNet", CVPR 2015;
    `multi-similarity`: Wang et al., CVPR 2019; `supcon`: Khosla et al., "Supervised Contrastive Learning", NeurIPS
    2020.

    Raises:
        InputError: pytorch-metric-learning is needed and not installed.
    """
    if name == "cross-entropy":
        return CrossEntropyLoss()
    try:
        from pytorch_metric_learning import losses
    except ImportError as error:
        raise InputError(
            f"loss.supervised '{name}' needs pytorch-metric-learning, which is not installed: "
            "pip install 'indistill[metric-learning]', or use cross-entropy or none"
        ) from error
    criteria = {
        "triplet": losses.TripletMarginLoss,
        "multi-similarity": losses.MultiSimilarityLoss,
        "supcon": losses.SupConLoss,
    }
    return MetricLearningLoss(criteria[name]())

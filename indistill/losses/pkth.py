"""PKT along the information flow (PKTH): all stages and the embedding by PKT, the stages fading out."""

INITIAL_WEIGHT = 100.0
DECAY = 0.7


def weigh_stages(epoch: int) -> float:
    """Returns what PKT of each stage is multiplied by beside that of the embedding, in an epoch counted from 0.

    A stage's maps (N, C, H, W) are one row of C * H * W numbers for each image; `PktLoss` flattens them.

    Reference: Passalis, Tzelepi and Tefas, "Heterogeneous Knowledge Distillation using Information Flow Modeling",
    CVPR 2020: the supervision of the information flow in the critical period, with both kernels.
    Differs: any teacher whose stages are paired with the student's, where the paper has an auxiliary one of the
    student's structure; the loss is times `loss.scale`.
    """
    return INITIAL_WEIGHT * DECAY**epoch

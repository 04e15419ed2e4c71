"""The three networks of InDistill's CIFAR-10 experiments (Sarridis et al., arXiv 2205.10003, section 4).

Each names the module that closes a stage `stage1`, `stage2`, ..., so that a stage is tapped by name, and
the module whose output is the embedding `embedding`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaperCnn(nn.Module):
    """Three convolution stages, an embedding layer and a classifier, for small square images.

    Parameter names (`conv1.weight`, `conv1_bn.weight`, ..., `fc1.weight`, `fc2.weight`) are those of the published
    weight files.

    Args:
        widths: channels of the three stages.
        embedding_dim: D, the width of the embedding.
        num_classes: width of the classifier.
        image_size: side of the square input in pixels, at least 22.
    """

    def __init__(
        self, widths: tuple[int, int, int], embedding_dim: int, num_classes: int = 10, image_size: int = 32
    ) -> None:
        super().__init__()
        side = image_size
        for _ in widths:
            side = (side - 2) // 2  # a 3x3 convolution without padding, then pooling by two
        if side < 1:
            raise ValueError(f"image_size {image_size} is too small for three stages, at least 22 is needed")
        self.conv1 = nn.Conv2d(3, widths[0], 3)
        self.conv1_bn = nn.BatchNorm2d(widths[0])
        self.stage1 = nn.ReLU()
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3)
        self.conv2_bn = nn.BatchNorm2d(widths[1])
        self.stage2 = nn.ReLU()
        self.conv3 = nn.Conv2d(widths[1], widths[2], 3)
        self.conv3_bn = nn.BatchNorm2d(widths[2])
        self.stage3 = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(widths[2] * side * side, embedding_dim)
        self.embedding = nn.ReLU()
        self.fc2 = nn.Linear(embedding_dim, num_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits (B, num_classes) for normalised images (B, 3, H, W)."""
        # Pooling before the ReLU gives the same values as after it, on a quarter of the pixels.
        x = self.stage1(self.pool(self.conv1_bn(self.conv1(image))))
        x = self.stage2(self.pool(self.conv2_bn(self.conv2(x))))
        x = self.stage3(self.pool(self.conv3_bn(self.conv3(x))))
        x = self.embedding(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)  # type: ignore[no-any-return]


class PreActivationBlock(nn.Module):
    """Two 3x3 convolutions, each after batch norm and ReLU (He et al. 2016, "Identity Mappings", figure 4e)."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (B, width_out, H / stride, W / stride)."""
        activated = F.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        y = self.conv1(activated)
        return self.conv2(F.relu(self.bn2(y))) + shortcut  # type: ignore[no-any-return]


class PaperResNet18(nn.Module):
    """Pre-activation ResNet-18 with a 3x3 stem, for small images.

    Args:
        num_classes: width of the classifier.
        width: channels of the first stage; the stages have 1, 2, 4 and 8 times as many.
    """

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.stage1 = self._build_stage(width, width, 1)
        self.stage2 = self._build_stage(width, 2 * width, 2)
        self.stage3 = self._build_stage(2 * width, 4 * width, 2)
        self.stage4 = self._build_stage(4 * width, 8 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.embedding = nn.Flatten()
        self.fc = nn.Linear(8 * width, num_classes)

    @staticmethod
    def _build_stage(width_in: int, width_out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            PreActivationBlock(width_in, width_out, stride), PreActivationBlock(width_out, width_out, 1)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits (B, num_classes) for normalised images (B, 3, H, W)."""
        x = self.stage4(self.stage3(self.stage2(self.stage1(self.conv1(image)))))
        return self.fc(self.embedding(self.pool(x)))  # type: ignore[no-any-return]


def build_cnn_a(num_classes: int = 10, image_size: int = 32) -> PaperCnn:
    """Returns the auxiliary teacher: widths 16-32-64, embedding 128, 57,994 parameters at 10 classes."""
    return PaperCnn((16, 32, 64), 128, num_classes, image_size)


def build_cnn_s(num_classes: int = 10, image_size: int = 32) -> PaperCnn:
    """Returns the student: widths 8-16-32, embedding 64, 15,050 parameters at 10 classes."""
    return PaperCnn((8, 16, 32), 64, num_classes, image_size)


PAPER_NETWORKS = {"resnet18": PaperResNet18, "cnn-a": build_cnn_a, "cnn-s": build_cnn_s}
PAPER_STAGES = {
    "resnet18": ("stage1", "stage2", "stage3", "stage4"),
    "cnn-a": ("stage1", "stage2", "stage3"),
    "cnn-s": ("stage1", "stage2", "stage3"),
}

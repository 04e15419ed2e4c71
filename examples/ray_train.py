"""Trains on a Ray cluster, a process for each worker: python ray_train.py WORKERS compress --teacher ... --out ...

Ray Train places the processes and sets up their process group; from there on it is `torchrun` with other words. Images,
teacher and run folder must have the same absolute paths on all nodes, and indistill must be installed there.
"""

import os
import sys

import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer


def run(arguments: list[str]) -> None:
    """Runs a command of indistill in one of the processes."""
    from indistill.cli.main import main

    os.environ["TORCHELASTIC_RUN_ID"] = "ray"  # by which PyTorch knows that its processes were started for it
    sys.argv = ["indistill", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"indistill ended with exit code {end.code}") from None


if __name__ == "__main__":
    workers, *arguments = sys.argv[1:]
    TorchTrainer(
        run,
        train_loop_config=arguments,
        scaling_config=ScalingConfig(num_workers=int(workers), use_gpu=torch.cuda.is_available()),
    ).fit()

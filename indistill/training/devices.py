"""Where a training runs: its processes, each with a device, and its precision, by Lightning Fabric."""

import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessExitedException
from torch.nn.utils import clip_grad_norm_

from indistill.errors import InputError, TrainingError
from indistill.parallel.processes import count_processes
from indistill.progress import silence_output
from indistill.signals import catch_signals, leave_termination
from indistill.training.precision import PrecisionName

# To end processes, with the seconds after each: after Ctrl-C they end by themselves. In all less than two seconds.
GRACE = ((None, 0.3), (signal.SIGINT, 0.7), (signal.SIGKILL, 0.3))
WAIT = timedelta(hours=12)  # of processes for the first one: it may download, or run a large teacher over all images

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces each process, on standard error


def choose_device(name: str) -> torch.device:
    """Returns the device of a name; `auto` is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device '{name}' cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def start_processes(device: str, count: int, command: Callable[[], None]) -> torch.device:
    """Returns the device of this process, among the processes that train together.

    Where several are asked for they are started here: each calls `command`, which comes to this place again and goes
    on, while the process that started them waits and ends with them. `torchrun` has started its own already.

    Args:
        device: auto, cpu, cuda or cuda:N.
        count: processes on this machine.
        command: what was called; it reads its arguments from `sys.argv`.

    Raises:
        InputError: no such device here, or not as many.
        SystemExit: in the process that started the others, when they have ended.
        TrainingError: a process was killed.
    """
    if count_processes() > 1:  # started here, by another process
        return _get_own_device(device)
    by_torchrun = dist.is_available() and dist.is_torchelastic_launched()
    local = int(os.environ["LOCAL_WORLD_SIZE"]) if by_torchrun else count
    if by_torchrun and count not in (1, local):
        raise InputError(f"--devices {count}: torchrun has started {local} processes here; leave --devices out")
    if by_torchrun and int(os.environ["WORLD_SIZE"]) > 1:
        check_devices(device, local)
        nodes = int(os.environ["WORLD_SIZE"]) // local
        Fabric(
            accelerator=_find_kind(device), strategy=DDPStrategy(timeout=WAIT), devices=local, num_nodes=nodes
        ).launch()
        return _get_own_device(device)
    if local == 1:
        return choose_device(device)
    check_devices(device, local)
    fabric = Fabric(
        accelerator=_find_kind(device),
        strategy=DDPStrategy(start_method="spawn", timeout=WAIT),
        devices=local,
        plugins=[LightningEnvironment()],
    )
    with _wait_for_all():
        fabric.launch(partial(_run, command))
    raise SystemExit(0)


def check_devices(device: str, count: int) -> None:
    """Raises InputError unless each of several processes on this machine has a device."""
    if ":" in device:
        raise InputError(f"--device '{device}' is one GPU, and {count} processes have one each: give --device cuda")
    choose_device(device)
    if _find_kind(device) == "cuda" and count > torch.cuda.device_count():
        raise InputError(
            f"--devices {count}: there are {torch.cuda.device_count()} GPUs here; give that number at most, or "
            "--device cpu"
        )


def make_precision(name: PrecisionName, device: torch.device) -> Precision:
    """Returns what runs the networks in a precision; parameters, losses and Adam are float32 in each."""
    if name == "32":
        return Precision()
    return MixedPrecision("bf16-mixed" if name == "bf16" else "16-mixed", device.type)


def clip_gradients(
    precision: Precision, optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], limit: float
) -> None:
    """Scales gradients down to a norm of `limit` at most: as they are, without the factor of 16 bits."""
    scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
    if scaler is not None:  # not by the plug-in, which refuses a fused Adam; PyTorch's scaler takes one
        scaler.unscale_(optimiser)
    clip_grad_norm_(parameters, limit)


def compile_network(network: nn.Module) -> None:
    """Makes a network's forward compiled code, from its next call on; a list of networks, that of each."""
    for module in network if isinstance(network, nn.ModuleList) else [network]:
        module.compile()


def check_compilation(device: torch.device) -> None:
    """Raises InputError unless torch.compile works here, which needs a C++ compiler, or Triton on a GPU."""
    if count_processes() > 1:
        raise InputError(
            f"--compile is for one process, and there are {count_processes()}, which share their batch norm: leave "
            "--compile or --devices out"
        )
    with explain_compiler(), torch.no_grad():
        torch.compile(_double)(torch.ones(2, device=device))


@contextmanager
def explain_compiler(*, compiled: bool = True) -> Iterator[None]:
    """Turns a failure of torch.compile into one line; does nothing where nothing is compiled.

    Raises:
        InputError: there was one.
    """
    if not compiled:
        yield
        return
    from torch._dynamo.exc import TorchDynamoException  # takes long to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the compiler's, on its own code
            yield
    except TorchDynamoException as error:
        cause = error.__cause__ or error
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise InputError(f"--compile: torch.compile failed ({reason}); leave --compile out") from error


def _run(command: Callable[[], None], _fabric: Fabric) -> None:
    """Runs the command in a process that was started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # by which it is told that the one that waits has ended
    catch_signals()
    leave_termination()
    if dist.get_rank() > 0:
        silence_output()
    try:
        command()
    except SystemExit as end:
        if end.code:  # else as any function ends: the launcher waits for a result
            raise
    finally:
        sys.stdout.flush()


@contextmanager
def _wait_for_all() -> Iterator[None]:
    """Ends as the processes end, and leaves none behind."""
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it names each process that it ends
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of lost connections, in the processes started
    try:
        yield
    except ProcessExitedException as error:
        if error.exit_code < 0:
            raise TrainingError(
                f"process {error.error_index} of the training was killed ({error.signal_name}): if the memory was not "
                "enough, give a smaller --batch-size or fewer --devices; --resume goes on from the last checkpoint"
            ) from error
        raise SystemExit(error.exit_code) from error
    finally:
        for number, grace_s in GRACE:
            alive = multiprocessing.active_children()
            for process in alive:
                if number is not None and process.pid is not None:
                    os.kill(process.pid, number)
            until = time.monotonic() + grace_s
            for process in alive:
                process.join(max(0.0, until - time.monotonic()))


def _find_kind(device: str) -> Literal["cpu", "cuda"]:
    return "cpu" if device == "cpu" or (device == "auto" and not torch.cuda.is_available()) else "cuda"


def _get_own_device(device: str) -> torch.device:
    return torch.device("cpu") if _find_kind(device) == "cpu" else torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def _double(x: Tensor) -> Tensor:
    return x * 2

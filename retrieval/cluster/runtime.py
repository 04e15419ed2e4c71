"""Ray itself: whether it is installed, joining a cluster or starting one, and its errors in our words."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from indistill.errors import IndistillError, InputError, describe_error


def require_ray() -> Any:  # noqa: ANN401 - a module
    """Returns the package.

    Raises:
        InputError: it, or what it needs here, is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere unless the user wants it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of a change to come
    try:
        import pyarrow  # noqa: F401
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed: pip install 'indistill[ray]'") from error
    return ray


@contextmanager
def start_ray(address: str | None = None) -> Iterator[None]:
    """Joins a cluster for as long as the context lasts; one that this process has joined already stays.

    Args:
        address: `auto`, `host:port` or `ray://host:port`; by default what RAY_ADDRESS says, else a cluster that was
            started on this machine, else one that is started now and ends with the context.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or it has no CPU.
    """
    ray = require_ray()
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        named = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise InputError(
            f"there is no Ray cluster at {named} ({describe_error(error)}): start one by 'ray start --head', or leave "
            "--address out"
        ) from error
    try:
        if not count_cpus():
            raise InputError("the Ray cluster has no CPU for our processes")
        yield
    finally:
        ray.shutdown()


def count_cpus() -> int:
    """Returns the CPUs of the nodes that are alive."""
    return int(require_ray().cluster_resources().get("CPU", 0))


def fetch(references: Any) -> Any:  # noqa: ANN401 - what Ray gives
    """Returns what tasks have made.

    Raises:
        IndistillError: as the task raised it.
    """
    ray = require_ray()
    try:
        return ray.get(references)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, IndistillError):
            raise error.cause from None  # its text is a traceback of another process
        raise

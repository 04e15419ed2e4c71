"""Ray itself: whether it is installed, joining a cluster or starting one, and its errors in our words."""

import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from indistill.errors import IndistillError, InputError
from indistill.signals import keep_handlers

REACH_S = 5.0


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
    named = address or os.environ.get("RAY_ADDRESS")
    place = f"Ray cluster at {named or 'this machine'}"
    if named is not None and not _is_reached(named):
        raise InputError(f"there is no {place}: start one by 'ray start --head', or mend --address or RAY_ADDRESS")
    try:
        with warnings.catch_warnings(action="ignore"), keep_handlers():  # what it warns of is raised too
            ray.init(named, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise InputError(
            f"there is no {place} that answers: start one by 'ray start --head', mend --address or RAY_ADDRESS, or if "
            "it wants a token set RAY_AUTH_MODE=token"
        ) from error
    except (RuntimeError, ValueError, ray.exceptions.RayError) as error:  # another version, or no address
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"the {place} cannot be joined: {reason}") from error
    try:
        if not count_cpus():
            raise InputError("the Ray cluster has no CPU for our processes")
        yield
    finally:
        ray.shutdown()


def _is_reached(address: str) -> bool:
    """Returns whether something listens at `host:port`: Ray itself tries for minutes."""
    found = re.fullmatch(r"(?:ray://)?([\w.-]+):(\d+)", address)
    if found is None:
        return True
    try:
        socket.create_connection((found[1], int(found[2])), timeout=REACH_S).close()
    except (OSError, OverflowError):
        return False
    return True


def count_cpus() -> int:
    """Returns the CPUs of the nodes that are alive."""
    return int(require_ray().cluster_resources().get("CPU", 0))


def list_places() -> list[Any]:
    """Returns for each node that is alive the strategy that puts an actor there, or elsewhere once it is lost.

    Ray's own SPREAD has put actors that declare no CPU on one node (2.49).
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node["NodeID"] for node in require_ray().nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return [NodeAffinitySchedulingStrategy(node, soft=True) for node in sorted(nodes)]


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

"""A Ray cluster of two nodes with two virtual CPUs each, on this machine.

A process of its own starts and ends the nodes, one that has no threads: Ray runs Python between fork and exec, which
may hang for ever where another thread, such as gRPC's, held a lock.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20}
DETECT_IN_SECONDS = {  # a killed node refuses the connection at once; one that is only slow is given time
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 30_000,
    "health_check_failure_threshold": 3,
}


class TwoNodes:
    """A running cluster; its `second` node, by its id, may be killed."""

    def __init__(self) -> None:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        try:
            self.address: str = self._process.submit(_start).result()
            self.renew_second()
        except BaseException:
            self.close()
            raise

    def kill_second(self) -> None:
        self._process.submit(_kill).result()

    def renew_second(self) -> None:
        self.second: str = self._process.submit(_add).result()

    def wait(self) -> None:
        self._process.submit(_wait).result()

    def close(self) -> None:
        self._process.submit(_shut_down).result()
        self._process.shutdown()


# What follows runs in that process.
_cluster: Any = None
_second: Any = None


def _start() -> str:
    global _cluster
    from ray.cluster_utils import Cluster

    head = NODE | {"include_dashboard": False, "_system_config": DETECT_IN_SECONDS}
    _cluster = Cluster(initialize_head=True, head_node_args=head)
    return str(_cluster.address)


def _add() -> str:
    global _second
    _second = _cluster.add_node(**NODE)
    _wait()
    return str(_second.node_id)


def _kill() -> None:
    _cluster.remove_node(_second, allow_graceful=False)


def _wait() -> None:
    _cluster.wait_for_nodes(timeout=60)


def _shut_down() -> None:
    if _cluster is not None:
        _cluster.shutdown()

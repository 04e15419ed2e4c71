"""Figures for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from indistill.retrieval.serve.opened import Opened

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server, apart from those of others in the process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "indistill_requests", "Requests.", ("method", "route", "code"), registry=self._registry
        )
        self._seconds = Histogram(
            "indistill_request_seconds",
            "From the first byte of a request to the last of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batches = Histogram(
            "indistill_batch_size", "Searches answered together.", buckets=SIZES, registry=self._registry
        )
        self._generation = Gauge("indistill_generation", "Of the index that answers.", registry=self._registry)
        self._items = Gauge("indistill_items", "Images of the index that answers.", registry=self._registry)
        self._failures = Counter(
            "indistill_reload_failures", "Newer generations that could not be opened.", registry=self._registry
        )

    def observe_request(self, method: str, route: str, code: int, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(method, route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def observe_batch(self, size: int) -> None:
        """Counts searches that were answered together."""
        self._batches.observe(size)

    def observe_generation(self, opened: Opened) -> None:
        """Takes generation and size of the index that answers from now on."""
        self._generation.set(opened.index.manifest.generation)
        self._items.set(opened.index.manifest.items)

    def observe_reload_failure(self) -> None:
        """Counts a newer generation that could not be opened."""
        self._failures.inc()

    def render(self) -> bytes:
        """Returns all of them in Prometheus's text format."""
        return generate_latest(self._registry)

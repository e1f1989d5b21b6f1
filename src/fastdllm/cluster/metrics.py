"""One page of metrics for all replicas: theirs, each under its name, and what is counted in front of them."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fastdllm.serve.metrics import SECONDS


class FrontMetrics:
    """What is counted where requests arrive."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "fastdllm_front_requests", "Requests answered, those refused before a replica saw them included.",
            ("path", "status"), registry=own,
        )  # fmt: skip
        self._seconds = Histogram(
            "fastdllm_front_request_seconds",
            "From a request's arrival to its end.",
            ("path",),
            buckets=SECONDS,
            registry=own,
        )
        self._lost = Counter(
            "fastdllm_front_replicas_lost", "Requests whose replica ended before they did.", registry=own
        )
        self._retried = Counter("fastdllm_front_retries", "Requests given to another replica for this.", registry=own)
        self._replicas = Gauge("fastdllm_front_replicas", "Replicas that answered just now.", registry=own)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def lost(self) -> None:
        """A request's replica has ended before the request has."""
        self._lost.inc()

    def retried(self) -> None:
        """A request is given to another replica."""
        self._retried.inc()

    def page(self, replicas: list[tuple[str, list[Metric]]]) -> bytes:
        """The page that Prometheus reads.

        Args:
            replicas: names, and what is counted there.
        """
        self._replicas.set(len(replicas))
        whole = CollectorRegistry()
        whole.register(_Merged([*self._registry.collect(), *merged(replicas)]))
        return generate_latest(whole)


def merged(replicas: Iterable[tuple[str, list[Metric]]]) -> list[Metric]:
    """The metrics of all replicas, each family once, its samples with the label ``replica``."""
    families: dict[str, Metric] = {}
    for name, metrics in replicas:
        for metric in metrics:
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            family.samples += [sample._replace(labels={**sample.labels, "replica": name}) for sample in metric.samples]
    return list(families.values())


class _Merged(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics

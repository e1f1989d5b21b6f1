"""What is counted and measured, for Prometheus; each server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fastdllm.serve.jobs import Stats

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
TOKENS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)
GAUGES = {
    "jobs_waiting": "Jobs in the queue.",
    "jobs_active": "Jobs at work.",
    "slots": "Jobs that may be at work at a time.",
    "free_slots": "Slots that no job holds.",
    "runs": "Groups in which the jobs at work go.",
    "rows_per_pass": "Most jobs that go through the network together; below slots after memory ran out.",
    "kv_bytes": "Bytes of the pool of keys and values.",
    "largest_batch": "Most jobs that were at work together.",
    "pass_seconds": "Seconds the pass at work has taken so far.",
    "healthy": "Whether the model thread runs.",
}
COUNTERS = {
    "passes": "Iterations in which every job at work took a step.",
    "steps": "Passes summed over jobs (NFE).",
    "rows_computed": "Canvas rows that went through the network.",
    "tokens_committed": "Slots written.",
    "jobs_accepted": "Jobs taken into the queue.",
    "jobs_refused": "Jobs refused because the queue was full.",
    "jobs_finished": "Jobs answered.",
    "jobs_failed": "Jobs that ended with an error.",
    "jobs_cancelled": "Jobs taken back, because the client left or a stop string was found.",
    "jobs_timed_out": "Jobs that took longer than they may.",
    "out_of_memory": "Passes for which memory did not suffice.",
}


class Metrics:
    """The registry and what the HTTP side puts into it; the rest it reads from the scheduler when asked."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Scheduler(stats))
        self._requests = self._counter("requests", "Requests answered.", "path", "status")
        self._seconds = self._histogram("request_seconds", "From a request's arrival to its end.", SECONDS, "path")
        self._queue = self._histogram("queue_seconds", "From a job's arrival to its first pass.", SECONDS)
        self._first = self._histogram("first_text_seconds", "From a request's arrival to first text.", SECONDS)
        self._choices = self._counter("choices", "Choices completed.", "finish_reason")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts that were answered.")
        self._completion = self._counter("completion_tokens", "Tokens of answers.")
        self._forward = self._histogram("tokens_per_forward", "Tokens of an answer divided by its passes.", TOKENS)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"fastdllm_{name}", about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"fastdllm_{name}", about, labels, buckets=tuple(buckets), registry=self.registry)

    def runs_on(self, environment: Mapping[str, object]) -> None:
        """Tell versions and hardware, as the labels of a metric that is always 1; once."""
        labels = {name: str(value) for name, value in environment.items() if value is not None}
        Gauge("fastdllm_info", "What the server runs on.", labels, registry=self.registry).labels(**labels).set(1)

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def admitted(self, waited: float) -> None:
        self._queue.observe(waited)

    def first_text(self, seconds: float) -> None:
        self._first.observe(seconds)

    def choice(self, finish_reason: str, tokens: int, nfe: int) -> None:
        """A choice is complete."""
        self._choices.labels(finish_reason).inc()
        self._completion.inc(tokens)
        self._forward.observe(tokens / nfe)

    def prompts(self, tokens: int) -> None:
        """A request with prompts of that many tokens was answered."""
        self._prompt.inc(tokens)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class _Scheduler(Collector):
    """Where the scheduler stands at the moment it is asked."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def describe(self) -> Iterable[Metric]:
        return []  # asking for names alone must not ask the scheduler

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        for name, about in GAUGES.items():
            yield GaugeMetricFamily(f"fastdllm_{name}", about, value=_value(stats, name))
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(f"fastdllm_{name}", about, value=_value(stats, name))


def _value(stats: Stats, name: str) -> float:
    return float(getattr(stats, name.removeprefix("jobs_")))

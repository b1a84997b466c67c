"""What the server has done, in Prometheus' form, under vLLM's names where they mean the same.

Counting is plain sums on the event loop; prometheus-client is imported when somebody scrapes. vLLM's dashboards work:
`vllm:*` metrics carry `model_name` and `engine`, and here `key` besides where a request is counted. What vLLM has no
name for is `herder_*`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from herder.serve.exchange import Exchange
    from herder.serve.models import Models

Labels = tuple[str, str]  # model, key

# Upper bounds of buckets, in seconds and tokens.
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0, 50000.0, 200000.0)

HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "vllm:time_to_first_token_seconds": ("Seconds from a request's arrival to its first token.", SLOW),
    "vllm:inter_token_latency_seconds": ("Seconds between two of a request's tokens as they are sent.", FAST),
    "vllm:e2e_request_latency_seconds": ("Seconds from a request's arrival to the end of its answer.", SLOW),
    "vllm:request_queue_time_seconds": ("Seconds in the engine's queue.", SLOW),
    "vllm:request_prefill_time_seconds": ("Seconds from the first scheduled token to the first generated one.", SLOW),
    "vllm:request_decode_time_seconds": ("Seconds from the first generated token to the last.", SLOW),
    "vllm:request_prompt_tokens": ("Prompt tokens of a request.", SIZES),
    "vllm:request_generation_tokens": ("Generated tokens of a request.", SIZES),
}
COUNTERS = {
    "vllm:prompt_tokens": "Prompt tokens, cached ones included.",
    "vllm:prompt_tokens_cached": "Prompt tokens found in the prefix cache.",
    "vllm:generation_tokens": "Generated tokens.",
    "herder_requests_cancelled": "Requests whose client went away.",
    "herder_requests_failed": "Requests that ended with an error.",
}


class Histogram:
    """Counts of values in buckets; bounds are upper and inclusive."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulated, as Prometheus has them."""
        total, rows = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows


class Metrics:
    """Every method runs on the event loop."""

    def __init__(self) -> None:
        self._histograms: dict[tuple[str, Labels], Histogram] = {}
        self._counters: Counter[tuple[str, Labels]] = Counter()
        self._finished: Counter[tuple[str, Labels]] = Counter()  # by reason
        self._http: Counter[tuple[str, str, int, str]] = Counter()
        self._refused: Counter[str] = Counter()
        self.last_token: dict[str, float] = {}  # by model: monotonic seconds when it last generated

    def first_token(self, exchange: Exchange, seconds: float) -> None:
        self.last_token[exchange.model] = monotonic()
        self._observe("vllm:time_to_first_token_seconds", exchange, seconds)

    def between_tokens(self, exchange: Exchange, seconds: float) -> None:
        self._observe("vllm:inter_token_latency_seconds", exchange, seconds)

    def refused(self, model: str) -> None:
        """A request that found the queue full."""
        self._refused[model] += 1

    def http(self, path: str, method: str, status: int, key: str) -> None:
        self._http[path, method, status, key] += 1

    def _observe(self, name: str, exchange: Exchange, value: float) -> None:
        where = name, (exchange.model, exchange.principal.key)
        histogram = self._histograms.get(where)
        if histogram is None:
            histogram = self._histograms[where] = Histogram(HISTOGRAMS[name][1])
        histogram.observe(value)

    def end(self, exchange: Exchange) -> None:
        """An admitted request has ended, however."""
        labels = exchange.model, exchange.principal.key
        for name, count in (
            ("vllm:prompt_tokens", exchange.prompt_tokens),
            ("vllm:prompt_tokens_cached", exchange.cached_tokens),
            ("vllm:generation_tokens", exchange.completion_tokens),
            ("herder_requests_cancelled", exchange.status == 499),
            ("herder_requests_failed", exchange.status >= 500),
        ):
            self._counters[name, labels] += int(count)
        if not exchange.reasons:
            return
        for reason in exchange.reasons:
            self._finished[reason, labels] += 1
        self._observe("vllm:e2e_request_latency_seconds", exchange, monotonic() - exchange.started)
        self._observe("vllm:request_queue_time_seconds", exchange, exchange.queue)
        self._observe("vllm:request_prefill_time_seconds", exchange, exchange.prefill)
        self._observe("vllm:request_decode_time_seconds", exchange, exchange.decode)
        self._observe("vllm:request_prompt_tokens", exchange, exchange.prompt_tokens)
        self._observe("vllm:request_generation_tokens", exchange, exchange.completion_tokens)

    # Scraping --------------------------------------------------------------------------------------------------------
    def exposition(self, models: Models) -> tuple[bytes, str]:
        """The page and its content type."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST

        metrics = self

        class Collected:
            def collect(self) -> Iterator[Metric]:
                yield from metrics._families(models)

        registry = CollectorRegistry(auto_describe=False)
        registry.register(Collected())
        return generate_latest(registry), CONTENT_TYPE_LATEST

    def _families(self, models: Models) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        labels = ("model_name", "engine", "key")
        for name, (text, _) in HISTOGRAMS.items():
            family = HistogramMetricFamily(name, text, labels=labels)
            for (which, (model, key)), histogram in self._histograms.items():
                if which == name:
                    family.add_metric((model, "0", key), histogram.buckets(), histogram.sum)
            yield family
        for name, text in COUNTERS.items():
            yield _counter(name, text, labels, self._counters, name)
        reasons = CounterMetricFamily(
            "vllm:request_success", "Answers, by why they ended.", labels=(*labels, "finished_reason")
        )
        for (reason, (model, key)), count in self._finished.items():
            reasons.add_metric((model, "0", key, reason), count)
        yield reasons
        http = CounterMetricFamily("herder_http_requests", "HTTP requests.", labels=("path", "method", "status", "key"))
        for (path, method, status, key), count in self._http.items():
            http.add_metric((path, method, str(status), key), count)
        yield http
        refused = CounterMetricFamily(
            "herder_requests_refused", "Requests that found the queue full.", labels=labels[:1]
        )
        for model, count in self._refused.items():
            refused.add_metric((model,), count)
        yield refused
        yield from _model_families(models)


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Counter[Any], which: str) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(name, text, labels=labels)
    for (counted, (model, key)), count in counts.items():
        if counted == which:
            family.add_metric((model, "0", key), count)
    return family


def _model_families(models: Models) -> Iterator[Metric]:
    """What the loaded models' engines hold now."""
    from prometheus_client.core import GaugeMetricFamily

    families = {
        name: GaugeMetricFamily(name, text, labels=("model_name", "engine"))
        for name, text in (
            ("vllm:num_requests_running", "Requests in the running batch."),
            ("vllm:num_requests_waiting", "Requests waiting to run."),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache that running requests hold, 0 to 1."),
            ("herder_prefix_cache_pages", "KV pages that the prefix cache knows."),
            ("herder_model_loaded", "1 for a model in memory."),
            ("herder_model_memory_bytes", "Bytes that a loaded model was given."),
            ("herder_model_loads", "How often the model was loaded since the server started."),
            ("herder_model_load_seconds", "Seconds that its last load took."),
            ("herder_engine_steps", "Batches that the engine has run since the model was loaded."),
            ("herder_engine_preemptions", "Requests set back for want of pages since the model was loaded."),
        )
    }
    for served in models:
        values = {
            "herder_model_loaded": float(served.llm is not None),
            "herder_model_memory_bytes": float(served.bytes if served.llm is not None else 0),
            "herder_model_loads": float(served.loads),
            "herder_model_load_seconds": served.load_seconds,
        }
        if served.llm is not None:
            stats = served.llm.engine.stats()
            values |= {
                "vllm:num_requests_running": stats.running,
                "vllm:num_requests_waiting": stats.waiting,
                "vllm:kv_cache_usage_perc": stats.pages_used / max(1, stats.pages),
                "herder_prefix_cache_pages": stats.pages_cached,
                "herder_engine_steps": stats.counters.steps,
                "herder_engine_preemptions": stats.preemptions,
            }
        for name, value in values.items():
            families[name].add_metric((served.name, "0"), value)
    yield from families.values()

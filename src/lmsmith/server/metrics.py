"""Figures of the server for Prometheus, in a registry of the server's own."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAPS = (0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5)


@dataclass(frozen=True)
class ModelMetrics:
    """A model's figures, looked up once: every token counts in them."""

    first_token: Histogram
    gap: Histogram
    prompt_tokens: Counter
    cached_tokens: Counter
    generated_tokens: Counter
    cancelled: Counter


class Metrics:
    """All figures, by model where that makes sense."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        model = ["model"]

        def counter(name: str, what: str, labels: list[str]) -> Counter:
            return Counter(f"lmsmith_{name}", what, labels, registry=self.registry)

        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"lmsmith_{name}", what, model, registry=self.registry)

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(
                f"lmsmith_{name}_seconds", what, model, buckets=buckets, registry=self.registry
            )

        self.waiting = gauge("requests_waiting", "Requests in the queue.")
        self.active = gauge("replies_active", "Replies being written or about to be.")
        self.cache_used = gauge("cache_used_bytes", "Of the cache, kept conversations included.")
        self.first_token = histogram("time_to_first_token", "From question to first token.", _WAITS)
        self.gap = histogram("inter_token", "From one token of a reply to the next.", _GAPS)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", model)
        self.cached_tokens = counter("cached_tokens", "Of those, not read again.", model)
        self.generated_tokens = counter("generated_tokens", "Tokens of replies.", model)
        self.cancelled = counter("requests_cancelled", "Clients that went away.", model)
        self.rejected = counter("requests_rejected", "Requests refused, by reason.", ["reason"])
        self.responses = counter("responses", "Responses, by path and status.", ["path", "status"])

    def of(self, model: str) -> ModelMetrics:
        return ModelMetrics(
            first_token=self.first_token.labels(model),
            gap=self.gap.labels(model),
            prompt_tokens=self.prompt_tokens.labels(model),
            cached_tokens=self.cached_tokens.labels(model),
            generated_tokens=self.generated_tokens.labels(model),
            cancelled=self.cancelled.labels(model),
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

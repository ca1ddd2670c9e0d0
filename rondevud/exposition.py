"""Metrics as text, in the formats that Prometheus reads. Imported by a daemon that serves metrics only."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from rondevud.families import Family


class Exposition:
    """Writes families, and what the kernel says of this process, in the format that is asked for."""

    def __init__(self) -> None:
        self._process = ProcessCollector(registry=None)

    def write(self, families: Iterable[Family], accept: str) -> tuple[str, bytes]:
        """Content type and body; `accept` is what the request's header of that name says."""
        registry = CollectorRegistry()
        registry.register(_Families(families))
        registry.register(self._process)
        encode, content_type = choose_encoder(accept)
        return content_type, encode(registry)


class _Families(Collector):
    def __init__(self, families: Iterable[Family]) -> None:
        self._metrics = [_metric(family) for family in families]

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metric(family: Family) -> Metric:
    name = family.name.removesuffix("_total")  # OpenMetrics: a counter's samples have it, the family has not
    suffix = family.name[len(name) :]
    metric = Metric(name, family.described.help, family.described.kind)
    for sample in family.samples:
        metric.add_sample(name + (sample.suffix or suffix), sample.labels, sample.value)
    return metric

"""What is counted, for Prometheus. Labels are names of rpcs and codes, never of queues, tasks or callers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from .settings import Address

logger = logging.getLogger("torrelque.server")

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_SLOW = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter("torrelque_rpcs", "Calls that ended", ["rpc", "code"], registry=self.registry)
        self._seconds = Histogram(
            "torrelque_rpc_seconds", "Length of calls that do not wait", ["rpc"], buckets=_FAST, registry=self.registry
        )
        self._waits = Histogram(
            "torrelque_wait_seconds", "Length of polls and streams", ["rpc"], buckets=_SLOW, registry=self.registry
        )
        self.returned = Counter(
            "torrelque_returned_tasks", "Tasks given back because nobody received them", registry=self.registry
        )
        self.delivered = Counter("torrelque_delivered_tasks", "Tasks written to clients", registry=self.registry)
        self._held: dict[int, Sized] = {}
        outstanding = Gauge(
            "torrelque_outstanding_tasks", "Tasks delivered on open streams and not settled", registry=self.registry
        )
        outstanding.set_function(lambda: sum(map(len, list(self._held.values()))))
        self.storage_up = Gauge("torrelque_storage_up", "1 while Redis answers", registry=self.registry)
        self._ended: dict[tuple[str, str], Counter] = {}
        self._timed: dict[str, Histogram] = {}

    def ended(self, rpc: str, waits: bool, code: str, seconds: float) -> None:
        """Count a call."""
        key = (rpc, code)
        counter = self._ended.get(key)
        if counter is None:
            counter = self._ended[key] = self._calls.labels(rpc, code)
        counter.inc()
        timer = self._timed.get(rpc)
        if timer is None:
            timer = self._timed[rpc] = (self._waits if waits else self._seconds).labels(rpc)
        timer.observe(seconds)

    @contextmanager
    def showing(self, held: Sized) -> Iterator[None]:
        """Count what is in *held*, whenever somebody looks, among the tasks that are outstanding."""
        self._held[id(held)] = held
        try:
            yield
        finally:
            del self._held[id(held)]

    def watch_in_flight(self, in_flight: Mapping[str, int]) -> None:
        """Show how many calls of each kind are in flight."""
        self.registry.register(_InFlight(in_flight))

    def watch_given_up(self, given_up: Callable[[], int]) -> None:
        """Show how many tasks have been given up so far."""
        self.registry.register(_GivenUp(given_up))

    def serve(self, address: Address) -> tuple[int, Callable[[], None]]:
        """Let Prometheus in at an address, in a thread of its own; returns the port, and how to stop."""
        server, thread = start_http_server(address.port, address.host, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return server.server_port, stop


class _InFlight(Collector):
    def __init__(self, in_flight: Mapping[str, int]) -> None:
        self._in_flight = in_flight

    def collect(self) -> Any:
        family = GaugeMetricFamily("torrelque_in_flight", "Calls in flight", labels=["kind"])
        for kind, count in list(self._in_flight.items()):
            family.add_metric([kind], count)
        yield family


class _GivenUp(Collector):
    def __init__(self, given_up: Callable[[], int]) -> None:
        self._given_up = given_up

    def collect(self) -> Any:
        yield CounterMetricFamily(
            "torrelque_given_up_tasks", "Tasks ended here after as many deliveries as allowed", self._given_up()
        )

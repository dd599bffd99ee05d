"""Measured numbers of built artifacts: latency, throughput, size, memory, energy, parity; scores and certificates."""

from __future__ import annotations

from alula.measurement.energy import estimate_energy
from alula.measurement.machine import describe_machine, versions
from alula.measurement.measure import measure
from alula.measurement.measurement import Measurement
from alula.measurement.parity import Parity, Tolerance, check_parity
from alula.measurement.throughput import measure_throughput
from alula.measurement.trace import Trace, record_trace

__all__ = [
    "Measurement", "Parity", "Tolerance", "Trace", "check_parity", "describe_machine", "estimate_energy", "measure",
    "measure_throughput", "record_trace", "versions",
]  # fmt: skip

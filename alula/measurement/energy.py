"""Energy: read from the processor's own counters where they may be read, otherwise estimated from operation counts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from alula.errors import DataError
from alula.measurement.intervals import Floats, median_interval
from alula.measurement.latency import CONFIDENCE, Turn
from alula.measurement.measurement import Measurement

# Picojoules at 45 nm and 0.9 V: M. Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014,
# fig. 1.1.9. A product and its sum: float32 3.7 + 0.9; float16 1.1 + 0.4; int8 0.2, added up in int32 0.1.
MAC_PICOJOULES = {8: 0.2 + 0.1, 16: 1.1 + 0.4, 32: 3.7 + 0.9}
DRAM_PICOJOULES_PER_BYTE = (1300 / 8, 2600 / 8)  # 1.3 to 2.6 nJ for 64 bits
_SOURCE = "Horowitz, ISSCC 2014 (45 nm)"


def estimate_energy(macs_by_bits: Mapping[int, int], bytes_moved: int) -> Measurement:
    """Energy in millijoules of so many multiply-accumulates by operand width, and bytes fetched from memory.

    energy = sum over bits of macs * (product + sum) + bytes_moved * DRAM, with published energies of one operation.
    Widths between the published ones count as the next larger. The interval is that of the published DRAM energy.
    Caches, idle power and instruction overheads are left out: it serves to compare candidates, not to size a battery.

    Raises:
        DataError: a count is negative, or wider than 32 bits.
    """
    wrong = {bits: macs for bits, macs in macs_by_bits.items() if not 1 <= bits <= max(MAC_PICOJOULES) or macs < 0}
    if wrong or bytes_moved < 0:
        raise DataError(f"counts must be 0 or more, of 1 to 32 bits; got {dict(macs_by_bits)} and {bytes_moved} bytes")
    compute = sum(macs * _mac_picojoules(bits) for bits, macs in macs_by_bits.items())
    low, high = (1e-9 * (compute + bytes_moved * picojoules) for picojoules in DRAM_PICOJOULES_PER_BYTE)
    method = f"estimate: operation counts and bytes moved times the energy of one operation, {_SOURCE}; not measured"
    return Measurement((low + high) / 2, "mJ", low, high, None, 1, method, estimated=True)


def _mac_picojoules(bits: int) -> float:
    return MAC_PICOJOULES[min(width for width in MAC_PICOJOULES if width >= bits)]


@dataclass
class EnergyMeter:
    """Joules used so far by all processor packages and their memory, from Linux's RAPL counters.

    The counters wrap around (after some minutes at full load): each reading adds the difference since the last one, so
    a meter must be read at least once in that time.
    """

    domains: tuple[Path, ...]
    _last: dict[Path, int] = field(default_factory=dict)
    _joules: float = 0.0

    def __call__(self) -> float:
        """Joules since the first reading."""
        for domain in self.domains:
            now = _read_microjoules(domain / "energy_uj")
            used = now - self._last.get(domain, now)
            if used < 0:
                used += _read_microjoules(domain / "max_energy_range_uj")
            self._joules += used * 1e-6
            self._last[domain] = now
        return self._joules


def find_meter(root: Path = Path("/sys/class/powercap")) -> EnergyMeter | None:
    """A meter over every package, and every memory domain beside it, that this user may read; None if there is none."""
    domains = tuple(folder for folder in sorted(root.glob("intel-rapl:*")) if _is_counted(folder))
    return EnergyMeter(domains) if domains else None


def _is_counted(folder: Path) -> bool:
    """Packages and memory; core and uncore are inside their package, and psys holds everything again."""
    try:
        label = (folder / "name").read_text().strip()
        _read_microjoules(folder / "energy_uj")
        _read_microjoules(folder / "max_energy_range_uj")
    except (OSError, ValueError):
        return False
    return bool(re.fullmatch(r"package-\d+(-die-\d+)?|dram", label))


def _read_microjoules(path: Path) -> int:
    return int(path.read_text())


def summarise_energy(turns: Sequence[Turn]) -> Measurement | None:
    """Measured millijoules of one replay; None when the turns were not metered."""
    metered = [1e3 * turn.energy_j / len(turn.seconds) for turn in turns if turn.energy_j is not None]
    if not metered:
        return None
    low, high, coverage = median_interval(metered, CONFIDENCE)
    method = f"RAPL package and memory over {len(metered)} turns, idle power included; median, sign-test interval"
    return Measurement(float(np.median(metered)), "mJ", low, high, round(coverage, 4), len(metered), method)


def compare_energy(original: Sequence[Turn], candidate: Sequence[Turn]) -> Measurement:
    """How many times less energy the candidate takes: median over rounds of original / candidate, with its interval.

    Raises:
        DataError: the turns were not metered, or the meter stood still in a round.
    """
    ratios = _joules(original) / _joules(candidate)  # [rounds]
    low, high, coverage = median_interval(ratios, CONFIDENCE)
    method = f"RAPL: median of {len(ratios)} per-round ratios original / candidate; sign-test interval"
    return Measurement(float(np.median(ratios)), "x", low, high, round(coverage, 4), len(ratios), method)


def _joules(turns: Sequence[Turn]) -> Floats:  # [rounds]
    """Of one replay, turn by turn."""
    joules = np.array([(turn.energy_j or 0.0) / len(turn.seconds) for turn in turns])
    if not (joules > 0).all():
        raise DataError("energy is compared of turns that were metered, and in which the meter moved; measure longer")
    return joules

from __future__ import annotations

import os

import numpy as np
import pytest

from alula.errors import DataError
from alula.measurement.energy import compare_energy, estimate_energy, find_meter, summarise_energy
from alula.measurement.latency import Turn


def add_domain(root, folder, name, microjoules, limit=1_000_000):
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    (path / "max_energy_range_uj").write_text(f"{limit}\n")
    return path


def test_estimate_by_hand():
    """A billion float32 products and sums at 4.6 pJ, and a million bytes at 162.5 to 325 pJ."""
    estimate = estimate_energy({32: 1_000_000_000}, 1_000_000)
    assert estimate.low == pytest.approx(4.6 + 0.1625)
    assert estimate.high == pytest.approx(4.6 + 0.325)
    assert estimate.low < estimate.value < estimate.high
    assert (estimate.unit, estimate.estimated) == ("mJ", True)
    assert "Horowitz" in estimate.method
    assert "not measured" in estimate.method


def test_fewer_bits_cost_less():
    energies = [estimate_energy({bits: 10**9}, 0).value for bits in (8, 16, 32)]
    assert energies == pytest.approx([0.3, 1.5, 4.6])
    assert estimate_energy({4: 10**9}, 0).value == pytest.approx(0.3), "unpublished widths count as the next larger"
    assert estimate_energy({8: 10**9, 32: 10**9}, 0).value == pytest.approx(4.9)
    assert estimate_energy({}, 0).value == 0


@pytest.mark.parametrize(("macs", "moved"), [({64: 1}, 0), ({0: 1}, 0), ({8: -1}, 0), ({8: 1}, -1)])
def test_wrong_counts(macs, moved):
    with pytest.raises(DataError, match="counts must be"):
        estimate_energy(macs, moved)


def test_meter_adds_packages_and_memory_and_nothing_twice(tmp_path):
    first = add_domain(tmp_path, "intel-rapl:0", "package-0", 500)
    core = add_domain(tmp_path, "intel-rapl:0:0", "core", 500)
    memory = add_domain(tmp_path, "intel-rapl:0:1", "dram", 500)
    second = add_domain(tmp_path, "intel-rapl:1", "package-1", 500)
    whole = add_domain(tmp_path, "intel-rapl:2", "psys", 500)
    twin = add_domain(tmp_path, "intel-rapl-mmio:0", "package-0", 500)
    meter = find_meter(tmp_path)
    assert meter() == 0
    for path, used in ((first, 100), (core, 50), (memory, 20), (second, 3), (whole, 999), (twin, 100)):
        (path / "energy_uj").write_text(str(500 + used))
    assert meter() == pytest.approx(123e-6)


def test_meter_wraps_around(tmp_path):
    domain = add_domain(tmp_path, "intel-rapl:0", "package-0", 999_900, limit=1_000_000)
    meter = find_meter(tmp_path)
    meter()
    (domain / "energy_uj").write_text("400")
    assert meter() == pytest.approx(500e-6)
    (domain / "energy_uj").write_text("700")
    assert meter() == pytest.approx(800e-6)


def test_no_meter(tmp_path):
    assert find_meter(tmp_path) is None
    assert find_meter(tmp_path / "absent") is None
    domain = add_domain(tmp_path, "intel-rapl:0", "package-0", 1)
    (domain / "energy_uj").write_text("not a number")
    assert find_meter(tmp_path) is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_meter(tmp_path):
    (add_domain(tmp_path, "intel-rapl:0", "package-0", 1) / "energy_uj").chmod(0)
    assert find_meter(tmp_path) is None


def test_energy_of_a_replay():
    turns = [Turn(np.full(10, 0.01), energy_j=joules) for joules in (0.1, 0.2, 0.3)]
    energy = summarise_energy(turns)
    assert (energy.value, energy.unit, energy.estimated) == (pytest.approx(20.0), "mJ", False)
    assert summarise_energy([Turn(np.ones(1))]) is None


def test_energy_in_turns_with_the_original():
    """Round by round: a drift of both cancels, and replays are counted."""
    drift = np.linspace(1, 3, 9)
    original = [Turn(np.full(10, 0.01), energy_j=10 * joules) for joules in drift]
    candidate = [Turn(np.full(5, 0.01), energy_j=5 * joules / 4) for joules in drift]
    ratio = compare_energy(original, candidate)
    assert (ratio.value, ratio.low, ratio.high, ratio.unit) == (pytest.approx(4), *[pytest.approx(4)] * 2, "x")
    for still in (Turn(np.ones(1)), Turn(np.ones(1), energy_j=0.0)):
        with pytest.raises(DataError, match="in which the meter moved"):
            compare_energy(original, [*candidate[:-1], still])

from __future__ import annotations

import getpass
import platform
from pathlib import Path

import numpy as np

from alula.measurement import describe_machine, versions


def test_says_what_matters_and_nothing_private():
    machine = describe_machine()
    assert set(machine) == {"processor", "architecture", "cores", "features", "memory", "system", "python"}
    assert all(machine.values())
    text = " ".join(machine.values())
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert getpass.getuser() not in text.split()


def test_versions_of_what_is_installed():
    found = versions()
    assert found["numpy"] == np.__version__
    assert "onnxruntime" in found


def test_absent_packages_are_left_out(monkeypatch):
    monkeypatch.setattr("alula.measurement.machine._PACKAGES", ("numpy", "no-such-package"))
    assert set(versions()) == {"numpy"}

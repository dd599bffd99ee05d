from __future__ import annotations

import os

import pytest

from alula.targets import processor as module
from alula.targets.processor import count_usable_cores, parse_processor, read_processor

X86 = "processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu avx2 avx512_vnni sse\n\nprocessor\t: 1\n"
ARM = "processor : 0\nFeatures : fp asimd asimddp i8mm\n"


def test_reads_x86():
    found = parse_processor(X86, "x86_64", 2)
    assert (found.name, found.cores, found.features) == ("Some Xeon", 2, {"avx2", "avx512_vnni"})
    assert found.is_x86
    assert found.has_int8_dot_product


def test_reads_arm():
    found = parse_processor(ARM, "aarch64", 2)
    assert found.features == {"asimd", "asimddp", "i8mm"}
    assert not found.is_x86
    assert found.has_int8_dot_product


def test_without_cpuinfo():
    assert parse_processor("", "arm64", 8).has_int8_dot_product, "Apple"
    unknown = parse_processor("", "AMD64", 8)
    assert unknown.is_x86
    assert not unknown.features, "nothing is promised that was not seen"
    assert unknown.name


def test_this_machine():
    assert 1 <= read_processor().cores <= (os.cpu_count() or 1)


def test_hyper_threads_count_once(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(module, "_physical_core", lambda cpu: ("0", str(cpu // 2)))
    monkeypatch.setattr(module, "_quota_of_cores", lambda _: 100)
    assert count_usable_cores() == 2
    monkeypatch.setattr(module, "_quota_of_cores", lambda _: 1)
    assert count_usable_cores() == 1, "a container's quota binds"


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 2), ("max 100000", 1 << 16), ("nonsense", 1 << 16)])
def test_quota(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text)
    assert module._quota_of_cores(tmp_path / "cpu.max") == cores


def test_no_quota(tmp_path):
    assert module._quota_of_cores(tmp_path / "absent") == 1 << 16

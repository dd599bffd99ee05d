from __future__ import annotations

import json
import math

import pytest

from alula.errors import DataError
from alula.measurement import Measurement


@pytest.mark.parametrize(
    ("measurement", "text"),
    [
        (Measurement(3.412, "ms", 3.38, 3.46, 0.95, 480), "3.41 ms (3.38 to 3.46)"),
        (Measurement(1.0, "x", 1.0, 1.0), "1.00x"),
        (Measurement(0.0123, "ms"), "0.0123 ms"),
        (Measurement(12345.6, "examples/s"), "12,346 examples/s"),
        (Measurement(0, "bytes"), "0 bytes"),
        (Measurement(999, "bytes"), "999 bytes"),
        (Measurement(22_700_000, "bytes", 22_000_000, 23_000_000), "22.7 MB (22.0 MB to 23.0 MB)"),
        (Measurement(3.2e9, "bytes"), "3.20 GB"),
        (Measurement(4.6, "mJ", 4.0, 5.2, estimated=True), "about 4.60 mJ (4.00 to 5.20)"),
    ],
)
def test_reads_well(measurement, text):
    assert str(measurement) == text


@pytest.mark.parametrize("low_high", [(None, None), (1.0, 2.5), (None, 3.0)])
def test_json_round_trip(low_high):
    measurement = Measurement(2.0, "ms", *low_high, 0.95, 7, "median", estimated=True)
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"value": 1.0},
        {"value": "fast", "unit": "ms"},
        {"value": 1, "unit": "ms", "n": None},
        {"value": 1, "unit": "ms", "x": 1},
    ],
)
def test_wrong_json(data):
    with pytest.raises(DataError, match="a measurement"):
        Measurement.from_json(data)


@pytest.mark.parametrize(("value", "low", "high"), [(math.nan, None, None), (1, 2, 3), (1, 0, 0.5), (1, -math.inf, 2)])
def test_nonsense_is_refused(value, low, high):
    with pytest.raises(DataError, match="finite with low <= value <= high"):
        Measurement(value, "ms", low, high)

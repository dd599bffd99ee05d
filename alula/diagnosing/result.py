"""What a diagnosis holds: plain records that can be written down, shown and compared."""

from __future__ import annotations

from dataclasses import dataclass

from alula.graph.model import Note
from alula.search.result import Finding, Record


@dataclass(frozen=True, slots=True)
class LayerNoise(Record):
    """One layer of the quantized network. Ratios of signal to noise are in decibels: 20 dB are an error of 10 %.

    ``sqnr_db`` is the ratio at its output in the running quantized network; the others are of the noise that the layer
    adds by itself, on float inputs: all of it, that of its weights alone, that of its activation alone. None: the layer
    stays in float, or its form does not tell the two apart.
    """

    name: str
    operator: str
    bits: str  # weight x activation in words: "int8 x uint8", "int4", "float32"
    sqnr_db: float
    added_db: float | None = None
    weights_db: float | None = None
    activations_db: float | None = None
    shift: float = 0.0  # the share of the noise it adds that is one constant per channel, 0..1
    error: float | None = None  # relative error of the outputs when this layer alone is quantized; None: not measured
    agreement: float | None = None  # fraction of output rows with the same largest entry then
    cause: str = ""
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Distribution(Record):
    """What a layer reads, as a histogram; the range that codes stand for there; how wide its weights' channels are."""

    layer: str
    tensor: str
    edges: tuple[float, ...]  # [bins + 1]
    counts: tuple[float, ...]  # [bins]
    low: float | None  # None: no fixed range
    high: float | None
    channels: tuple[float, ...]  # [C] largest weight magnitude of each output channel


@dataclass(frozen=True, slots=True)
class Diagnosis(Record):
    """Every layer, the worst first, with causes by name."""

    layers: tuple[LayerNoise, ...]
    findings: tuple[Finding, ...]
    notes: tuple[Note, ...]  # layers that could not be matched, and what else was left out
    error: float  # relative error of the outputs, of the whole quantized network
    sqnr_db: float  # the same in decibels
    agreement: float | None  # fraction of output rows with the same largest entry
    runs: int  # feeds that were seen
    distributions: tuple[Distribution, ...] = ()

    def layer(self, name: str) -> LayerNoise:
        """The layer of this name.

        Raises:
            KeyError: it was not matched.
        """
        return next((row for row in self.layers if row.name == name), None) or _missing(name)

    def __str__(self) -> str:
        from alula.diagnosing.words import diagnosis_in_words

        return diagnosis_in_words(self)


def _missing(name: str) -> LayerNoise:
    raise KeyError(name)

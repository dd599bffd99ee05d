"""Learned rounding: each part of a quantized graph made to give what that of the float graph gives, one after another.

    minimise by V     E(V) / E_0 + lambda f(V),        E = mean |y - y~|^2                 (AdaRound, equation 25)

y is what the part gives in the float graph; y~ what its copy on a grid gives, fed what the graph computes whose parts
before are rounded already; E_0 is the error of the codes that are there, so that lambda is a plain number, whatever the
scale of the part's output. (The paper's lambda is lambda E_0 / number of weights.)

Sources: Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization", of layers; Li et al. 2021,
"BRECQ: pushing the limit of post-training quantization by block reconstruction", of blocks, here by plain squared error
without Fisher information; Wei et al. 2022, "QDrop", of activations that are left in float at random.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alula.errors import DataError, RecipeError, StorageError, at, require
from alula.examples import hash_all
from alula.graph.cutting import cut_out, graft
from alula.graph.editing import Editor
from alula.graph.export import as_model
from alula.graph.feeds import Feeds
from alula.graph.feeds import feeds_of as calibration_feeds
from alula.graph.lifting import to_torch
from alula.graph.model import Model, Note
from alula.settings import check_rules, check_settings, expect
from alula.training.adaptive_rounding import Kept, error_of, keep, learn_rounding
from alula.training.checkpoint import load_state, save_state
from alula.training.flow import Flow
from alula.training.parts import Granularity, Part, parts_of
from alula.training.progress import counting

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Settings of learned rounding.

    Attributes:
        granularity: what is rounded together: ``layer`` (AdaRound), or ``block`` (BRECQ): residual blocks and halves of
            transformer layers, and single layers where there are none.
        steps: of the optimiser, for each part.
        calls: of the graph that a step learns from; where data are rows of arrays, a call has 16 of them.
        learning_rate: of Adam on V.
        regularisation: lambda, what the regulariser weighs against the error.
        warm_up: share of the steps before the regulariser counts.
        betas: the first and the last beta of the regulariser.
        drop: probability that an element of an activation inside a part is left unquantized in a step (QDrop).
        scale_rate: the highest relative change of the scale of an activation in one step
            (:mod:`alula.training.scales`); 0: they stay as they are. Those that several parts read stay in any case.
        half: what a part reads and gives is kept as float16, where it fits in, and nothing else: it is computed from
            the inputs on for each part. Less than half of the memory, and more time.
        seed: of the order of calls and of what is left unquantized.
    """

    granularity: Granularity = "block"
    steps: int = 1000
    calls: int = 2
    learning_rate: float = 1e-2
    regularisation: float = 10.0
    warm_up: float = 0.2
    betas: tuple[float, float] = (20.0, 2.0)
    drop: float = 0.5
    scale_rate: float = 0.0
    half: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self)
        check_rules(self, self._rules())

    def _rules(self) -> tuple[tuple[str, str, bool], ...]:
        return (
            ("steps", "at least 1", self.steps >= 1),
            ("calls", "at least 1", self.calls >= 1),
            ("learning_rate", "above 0 and finite", 0 < self.learning_rate < math.inf),
            ("regularisation", "at least 0 and finite", 0 <= self.regularisation < math.inf),
            ("warm_up", "at least 0 and below 1", 0 <= self.warm_up < 1),
            ("betas", "finite, falling, and at least 1", math.inf > self.betas[0] >= self.betas[-1] >= 1),
            ("drop", "at least 0 and at most 1", 0 <= self.drop <= 1),
            ("scale_rate", "at least 0 and below 1", 0 <= self.scale_rate < 1),
            ("seed", "from 0 to 2^32 - 1", 0 <= self.seed < 2**32),
        )


def reconstruct(
    quantized: Model | str | Path,
    original: Model | str | Path,
    data: Any,
    *,
    settings: Reconstruction | None = None,
    out: str | Path | None = None,
) -> Model:
    """Round the weights of a quantized graph anew, up or down each, so that its parts give what the float graph's give.

    The graph stays as it is but for its codes and, where that is asked for, scales of activations. A part whose error
    is not less than before keeps what it had; a note on each part tells the error before and after.

    Args:
        quantized: a graph whose weights are codes behind a ``DequantizeLinear`` (of ``Quantize`` or
            ``QuantizeWeights``), with activations on a grid or not.
        original: the float graph that it was made of, as it was just before (normalisations folded).
        data: inputs: rows of one array, or of an array per input name; or an iterable of feeds (labels are left out).
            All of them are kept, and what one part reads and gives at a time.
        settings: how.
        out: folder where each part is kept as it is done, so that the same call goes on after a kill.

    Raises:
        RecipeError: no layer's rounding can be learned.
        DataError: the data do not fit, hold NaN or infinity, or lead to such.
        ModelError: an operator of a part has no gradient (named).
        StorageError: the folder holds another run, or cannot be written.
    """
    expect("settings", settings, Reconstruction | None)
    expect("out", out, str | Path | None)
    settings = settings or Reconstruction()
    quantized, original = as_model(quantized), as_model(original)
    if [spec.name for spec in quantized.inputs] != [spec.name for spec in original.inputs]:
        raise RecipeError("both graphs must have the same inputs; give the float graph that the other was made of")
    parts, notes = parts_of(quantized, original, settings.granularity)
    if not parts:
        raise RecipeError(_nothing_to_do(notes))
    feeds = list(calibration_feeds(quantized.inputs, data))
    if not feeds:
        raise DataError("there are no calibration data; give one row at least")
    run = _Run(original, feeds, settings, None if out is None else Path(out))
    model = run.go(quantized, parts)
    return model.edited(model.edit(), notes)


class _Run:
    """One run: what it learns from, and where its state is kept."""

    def __init__(self, original: Model, feeds: Sequence[Feeds], settings: Reconstruction, folder: Path | None) -> None:
        self._original, self._feeds, self._settings, self._folder = original, feeds, settings, folder
        self._device: torch.device = require("accelerate", "compress").Accelerator().device

    def go(self, quantized: Model, parts: Sequence[Part]) -> Model:
        """The graph with all parts rounded anew, from where an earlier run stopped."""
        identity = hash_all([quantized.fingerprint, self._original.fingerprint, self._settings, self._feeds])
        model, done = self._resumed(quantized, identity)
        hold = not self._settings.half
        self._rounded, self._wanted = Flow(self._feeds, hold=hold), Flow(self._feeds, hold=hold)
        with counting("rounding") as report:
            for number in range(done, len(parts)):
                start, total = number * self._settings.steps, len(parts) * self._settings.steps
                with at(f"rounding of {parts[number].name!r}"):
                    model = self._round(model, parts[number:], number, lambda step: report(start + step, total))  # noqa: B023
                self._save(quantized, model, number + 1, identity)
        return model

    def _round(self, model: Model, parts: Sequence[Part], number: int, on_step: Callable[[int], None]) -> Model:
        """The graph with the first of the parts that are left rounded anew, where that makes its error less."""
        part = parts[0]
        kept = self._kept(model, parts)
        piece = cut_out(model, part.inputs, [part.output])
        before = error_of(piece, kept)
        if before == 0:
            return model.edited(model.edit(), [Note(part.name, "its rounding stays: there is no error")])
        weights = {node: self._original.weight(name) for node, name in part.weights.items()}
        seed = self._settings.seed * 1_000_003 + number
        after = learn_rounding(piece, part, weights, kept, self._settings, error=before, seed=seed, on_step=on_step)
        error = error_of(after, kept)
        size = kept.size() or 1.0
        if not error < before:  # NaN is no less
            text = f"its rounding stays: error {before / size:.3g} of its output's square, learned {error / size:.3g}"
            return model.edited(model.edit(), [Note(part.name, text)])
        text = f"rounding learned: error {error / size:.3g} of its output's square, before {before / size:.3g}"
        _log.info("%s: %s", part.name, text)
        made = graft(model, after)
        self._rounded.change(part.layers)
        return made.edited(made.edit(), [Note(part.name, text)])

    def _kept(self, model: Model, parts: Sequence[Part]) -> Kept:
        """What the first of some parts reads in the graph as it is rounded so far, and gives in the float graph."""
        part, half = parts[0], self._settings.half
        reads = [name for one in parts[1:] for name in one.inputs]
        gives = [one.output for one in parts[1:]]
        given = [
            {name: keep(array, half=half) for name, array in call.items()}
            for call in self._rounded.tensors(model, part.inputs, reads)
        ]
        wanted = [
            keep(call[part.output], half=half) for call in self._wanted.tensors(self._original, [part.output], gives)
        ]
        return Kept(tuple(given), tuple(wanted), self._device)

    def _save(self, quantized: Model, model: Model, done: int, identity: str) -> None:
        if self._folder is None:
            return
        before = quantized.graph.initializers
        changed = {name: to_torch(model.weight(name)) for name, value in model.graph.initializers.items()
                   if value.const_value is not before[name].const_value}  # fmt: skip
        notes = [note.to_json() for note in model.notes[len(quantized.notes) :]]
        save_state(self._folder, {"changed": changed}, {"identity": identity, "done": done, "notes": notes})

    def _resumed(self, quantized: Model, identity: str) -> tuple[Model, int]:
        """The graph as far as an earlier run came, and how many parts were done."""
        found = None if self._folder is None else load_state(self._folder)
        if found is None:
            return quantized, 0
        state, facts = found
        if facts.get("identity") != identity:
            raise StorageError(
                f"{self._folder} holds a run of another model, other data or other settings; choose another folder, or "
                "remove it"
            )
        editor = Editor(quantized.edit())
        for name, tensor in state.get("changed", {}).items():
            editor.replace_constant(name, tensor.numpy().astype(editor.array(name).dtype))
        _log.info("rounding goes on after %d parts", facts["done"])
        return quantized.edited(editor.model, [Note(**note) for note in facts["notes"]]), int(facts["done"])


def _nothing_to_do(notes: Sequence[Note]) -> str:
    reasons = "; ".join(map(str, notes[:3])) or "the graph has no layers"
    return f"there are no codes whose rounding could be learned ({reasons})"

"""How a loss depends on the units of a graph: gradients by the weights that scale them, run by run.

A unit goes when it is scaled to nothing: to first order that costs the sum of g w over the weights that it is a
multiple of (:func:`alula.graph.units.scaling_members`): behind a batch normalisation, which keeps its own mean, they
are its scale and shift. The graph is lifted once (:mod:`alula.graph.trainable`) and evaluated as it stands; of each run
only two numbers per unit are kept. Where there are no labels, the loss is r . y with r drawn from N(0, 1) for each
value of the outputs y: the expectation of its squared gradients is the diagonal of J^T J, the Gauss-Newton matrix of
the outputs' squared error, and since each example has its own r, those of a batch add up as if each had been run alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from alula.errors import DataError, ModelError, at
from alula.graph.channels import Coupling
from alula.graph.lifting import to_torch
from alula.graph.model import Model, check_feeds
from alula.graph.trainable import trainable
from alula.graph.units import joined_rows, scaling_members
from alula.numerics.importance import first_order, second_order

Feeds: TypeAlias = Mapping[str, np.ndarray]
Loss: TypeAlias = Callable[[Any, Any], Tensor]  # of what the lifted module gives, and of labels


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """Of each unit, [units] each: means over runs.

    Attributes:
        first_order: (sum of g w)^2, over the weights that scale it.
        second_order: 1/2 sum of (g w)^2, over those that compute it.
    """

    first_order: np.ndarray
    second_order: np.ndarray


class RandomProjection:
    """The loss r . y of the floating-point outputs, with r drawn anew each time; labels are not read."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, outputs: Tensor | Sequence[Tensor], labels: object = None) -> Tensor:  # noqa: ARG002
        """The loss.

        Raises:
            ModelError: no output is of a floating-point type.
        """
        given = [outputs] if isinstance(outputs, Tensor) else outputs
        floating = [output for output in given if output.is_floating_point()]
        if not floating:
            raise ModelError("no output is of a floating-point type, so that there is no gradient; give a loss")
        drawn = (torch.randn(output.shape, generator=self._generator, dtype=output.dtype) for output in floating)
        return torch.stack([(r * output).sum() for r, output in zip(drawn, floating, strict=True)]).sum()


class SensitivityMeter:
    """Runs a graph forward and backward, and adds up how its loss depends on the units of some couplings."""

    def __init__(self, model: Model, couplings: Sequence[Coupling], loss: Loss) -> None:
        with at("gradients"):
            self._module = trainable(model).eval().requires_grad_(requires_grad=False)
        self._inputs, self._couplings, self._loss = model.inputs, tuple(couplings), loss
        self._scaling = [scaling_members(model, coupling) for coupling in self._couplings]
        self._computing = [coupling.producers for coupling in self._couplings]
        read = {member.initializer for members in (*self._scaling, *self._computing) for member in members}
        self._weights = _weights(self._module, self._module.initializer_names, read)
        self._arrays = {name: weight.detach().double().numpy() for name, weight in self._weights.items()}
        self._first = [np.zeros(coupling.size) for coupling in self._couplings]
        self._second = [np.zeros(coupling.size) for coupling in self._couplings]
        self._runs = 0

    def add(self, feeds: Feeds, labels: object = None) -> None:
        """Run once, forward and backward.

        Raises:
            DataError: the feeds do not fit, the loss is not one finite number, or a gradient is not finite (named).
        """
        check_feeds(self._inputs, feeds)
        with torch.enable_grad():
            loss = self._loss(self._module(*(to_torch(feeds[spec.name]) for spec in self._inputs)), labels)
        if loss.numel() != 1 or not bool(torch.isfinite(loss).all()):
            raise DataError(f"the loss must be one finite number, got {loss.detach().flatten()[:4].tolist()}")
        gradients = self._gradients(loss)
        for index, (scaling, computing) in enumerate(zip(self._scaling, self._computing, strict=True)):
            weights, by_weights = (joined_rows(scaling, arrays.__getitem__) for arrays in (self._arrays, gradients))
            self._first[index] += first_order(weights, by_weights)
            weights, by_weights = (joined_rows(computing, arrays.__getitem__) for arrays in (self._arrays, gradients))
            self._second[index] += second_order(weights, by_weights**2)
        self._runs += 1

    def _gradients(self, loss: Tensor) -> dict[str, np.ndarray]:
        """Gradients by each weight; 0 where the loss does not depend on it."""
        if not loss.requires_grad:
            return {name: np.zeros_like(array) for name, array in self._arrays.items()}
        found = torch.autograd.grad(loss, list(self._weights.values()), allow_unused=True, materialize_grads=True)
        gradients = {name: gradient.double().numpy() for name, gradient in zip(self._weights, found, strict=True)}
        for name, gradient in gradients.items():
            if not np.isfinite(gradient).all():
                raise DataError(f"the gradient of the loss by {name!r} holds NaN or infinity; look at data and loss")
        return gradients

    def sensitivities(self) -> dict[str, Sensitivity]:
        """The means over all runs, by the coupling's name.

        Raises:
            DataError: nothing was run.
        """
        if self._runs == 0:
            raise DataError("there was no data to find gradients with; give at least one batch")
        return {
            coupling.name: Sensitivity(first / self._runs, second / self._runs)
            for coupling, first, second in zip(self._couplings, self._first, self._second, strict=True)
        }


def unit_sensitivities(
    model: Model, couplings: Sequence[Coupling], batches: Iterable[tuple[Feeds, Any]], loss: Loss
) -> dict[str, Sensitivity]:
    """How a loss depends on the units of some couplings, by the coupling's name.

    Squares are taken of the gradients of each batch: for the empirical Fisher information of a mean over examples, give
    batches of one example.

    Args:
        model: the graph.
        couplings: of it (:func:`alula.graph.channels.find_couplings`).
        batches: feeds and what the loss is given as labels, one after another.
        loss: of the outputs (a tensor, or the tuple of them) and labels, one number.

    Raises:
        ModelError: an operator of the graph has no gradient (it is named).
        DataError: there is no batch, feeds do not fit, or the loss or a gradient is not finite.
    """
    meter = SensitivityMeter(model, couplings, loss)
    for feeds, labels in batches:
        meter.add(feeds, labels)
    return meter.sensitivities()


def _weights(module: nn.Module, names: Mapping[str, str], wanted: AbstractSet[str]) -> dict[str, Tensor]:
    """Weights ready to be differentiated by, under the names of their initializers."""
    held = dict(module.named_parameters()) | dict(module.named_buffers())
    found = {name: held[path] for path, name in names.items() if name in wanted}
    missing = sorted(wanted - set(found))
    if missing:
        raise ModelError(f"the outputs do not depend on {missing[0]!r}; take out first what nothing reads")
    return {name: weight.requires_grad_() for name, weight in sorted(found.items())}

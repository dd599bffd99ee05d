"""What learns: a lifted graph on its device, its optimiser, its running average, and what must stay zero."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from alula.errors import ModelError, RecipeError, require
from alula.graph.lifting import LiftedGraph
from alula.graph.model import Model
from alula.graph.trainable import restored
from alula.training.batches import Batch
from alula.training.checkpoint import optimiser_state, restore_optimiser
from alula.training.gradual import is_matrix
from alula.training.loss import Given, Loss
from alula.training.modules import feeds_of, find_nonfinite, in_bfloat16, inside, lifted, named_outputs
from alula.training.scales import ScaleSteps
from alula.training.training import Training, learning_rate_at

MOMENTUM: Final = 0.9
Parameters = Sequence[tuple[str, nn.Parameter]]


class Diverged(Exception):  # noqa: N818  (never leaves the trainer)
    """The loss or a gradient is not finite."""


class Learner:
    """One graph being trained.

    Raises:
        RecipeError: nothing is left to train, or a pattern of what to freeze matches nothing.
        ModelError: the graph has an operator without gradient (named).
    """

    def __init__(
        self,
        model: Model,
        loss: Loss,
        training: Training,
        first: Batch,
        *,
        told: Mapping[str, Tensor] | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        self._model, self._loss, self._training = model, loss, training
        self._accelerator = require("accelerate", "compress").Accelerator()
        self.device: torch.device = self._accelerator.device
        self.share = (self._accelerator.process_index, self._accelerator.num_processes)
        self._also = inside(model, sorted(loss.needs().student))
        self._lifted = lifted(model, self._also).to(self.device)
        chosen = select_parameters(self._lifted, training, frozen)
        scales = {self._lifted.initializer_names[path] for path in self._lifted.scales}
        self.parameters = [(name, parameter) for name, parameter in chosen if name not in scales]
        self._masks = zero_masks(self.parameters) if training.keep_zeros else {}
        if training.gradual is not None:
            training.gradual.check(name for name, _ in self.parameters)
        self._average = _average_of(self._lifted, training.averaging)
        self._projections = self._project(first, told or {})
        self._module = self._accelerator.prepare(self._lifted)
        self._optimiser = make_optimiser([*self.parameters, *self._projections.named_parameters()], training)
        self._scale_steps = ScaleSteps([one for name, one in chosen if name in scales], training.scale_rate)
        self._bfloat16 = in_bfloat16(training.precision, self.device)

    def _project(self, first: Batch, told: Mapping[str, Tensor]) -> nn.ModuleDict:
        """What the loss trains beside the graph, for tensors of the shapes that a first batch gives."""
        if not told:
            return nn.ModuleDict()
        with torch.no_grad():
            seen = self._see(self._lifted.eval(), feeds_of(self._model, first.inputs, self.device))
        ours, theirs = ({name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (seen, told))
        return self._loss.projections(ours, theirs, self._training.seed).to(self.device)

    def _see(self, module: Any, feeds: Sequence[Tensor]) -> dict[str, Tensor]:
        """What a loss may read of the student: outputs, tensors inside, inputs."""
        seen = named_outputs(self._model, self._also, module(*feeds))
        seen.update(zip((spec.name for spec in self._model.inputs), feeds, strict=True))
        return seen

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files."""
        return bool(self._accelerator.is_main_process)

    def agree(self, value: Any) -> Any:
        """What the first process has, in all of them."""
        broadcast = require("accelerate.utils", "compress").broadcast_object_list
        return broadcast([value])[0] if self.share[1] > 1 else value

    def learn(self, batch: Batch, told: Mapping[str, Tensor], step: int, steps: int) -> float:
        """One step of the optimiser, of ``steps`` counted from 0; the loss of the batch.

        Raises:
            Diverged: the loss or a gradient is not finite; no weight was changed.
        """
        rate = learning_rate_at(step, steps, self._training)
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._scale_steps.rate = rate / self._training.learning_rate * self._training.scale_rate
        self._set_mode()
        self._optimiser.zero_grad(set_to_none=True)
        self._scale_steps.zero_grad(set_to_none=True)
        parts = list(_parts(batch, told, self._training.accumulate))
        total = 0.0
        for number, (part, teaching) in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else self._accelerator.no_sync(self._module):
                total += self._backward(part, teaching, batch if len(parts) > 1 else None)
        self._share_projections()
        self._clip()
        self._optimiser.step()
        self._scale_steps.step()
        gradual = self._training.gradual
        if gradual is not None and gradual.chooses_at(step + 1, steps):
            weights = {name: parameter.detach().cpu().numpy() for name, parameter in self.parameters}
            self._keep_only(gradual.masks(weights, step + 1, steps))
        apply_masks(self.parameters, self._masks)
        if self._average is not None:
            self._average.update_parameters(self._lifted)
            apply_masks(named_parameters(self._average.module), self._masks)
        return total

    def _clip(self) -> None:
        """Hold the gradients of weights and projections to a norm, if that is asked for.

        Raises:
            Diverged: a gradient is not finite.
        """
        learned = [*self.parameters, *self._projections.named_parameters()]
        norm = nn.utils.get_total_norm([one.grad for _, one in learned if one.grad is not None])
        if not math.isfinite(float(norm)):
            broken = (name for name, one in learned if one.grad is not None and not one.grad.isfinite().all())
            if (first := next(broken, None)) is not None:
                raise Diverged(f"a gradient is not finite, first that of {first!r}")
        if self._training.clip is not None:
            nn.utils.clip_grads_with_norm_([one for _, one in learned], self._training.clip, norm)

    def _keep_only(self, kept: Mapping[str, np.ndarray]) -> None:
        """Add zeros to those that there are."""
        for name, mask in kept.items():
            fresh = torch.from_numpy(mask).to(self.device)
            self._masks[name] = fresh & self._masks[name] if name in self._masks else fresh

    def _backward(self, part: Batch, told: Mapping[str, Tensor], whole: Batch | None) -> float:
        feeds = feeds_of(self._model, part.inputs, self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            seen = self._see(self._module, feeds)
        labels = None if part.labels is None else part.labels.to(self.device)
        shares = None if whole is None else (Given(part.inputs, {}, part.labels), Given(whole.inputs, {}, whole.labels))
        loss = self._loss(seen, told, labels, self._projections, shares)
        value = float(loss.detach())
        if not self._is_finite_everywhere(value):
            raise Diverged(f"the loss is {value}, first in {find_nonfinite(self._lifted, feeds)}")
        if not loss.requires_grad:
            raise ModelError(
                "the loss depends on no weight: an operator without gradient (ArgMax, a comparison, a rounding) stands "
                "between all weights and the outputs that it reads; let it read another output"
            )
        self._accelerator.backward(loss)
        return value

    def _is_finite_everywhere(self, value: float) -> bool:
        """Whether the loss is finite in all processes: if one stopped alone, the others would wait for it."""
        finite = math.isfinite(value)
        if self.share[1] == 1:
            return finite
        flag = torch.tensor(float(finite), device=self.device)
        return float(self._accelerator.reduce(flag, "mean")) == 1

    def _share_projections(self) -> None:
        """The mean of all processes' gradients, for what is not part of the graph."""
        for parameter in self._projections.parameters() if self.share[1] > 1 else ():
            if parameter.grad is not None:
                parameter.grad = self._accelerator.reduce(parameter.grad, "mean")

    def _set_mode(self) -> None:
        self._module.train()
        if not self._training.batch_statistics:
            self._lifted.get_submodule("_mode").eval()

    def graph(self) -> Model:
        """The graph with the weights of now; with their running average, where there is one."""
        return restored(self._lifted if self._average is None else self._average.module)

    def state(self) -> dict[str, Any]:
        """All that has to be kept to go on from here, as tensors."""
        state: dict[str, Any] = {
            "module": self._lifted.state_dict(),
            "projections": self._projections.state_dict(),
            "optimiser": optimiser_state(self._optimiser),
            "scales": optimiser_state(self._scale_steps),
            "masks": self._masks,
        }
        if self._average is not None:
            state["average"] = self._average.state_dict()
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what :meth:`state` gave."""
        self._lifted.load_state_dict(state["module"])
        self._projections.load_state_dict(state.get("projections", {}))
        restore_optimiser(self._optimiser, state.get("optimiser", {}))
        restore_optimiser(self._scale_steps, state.get("scales", {}))
        self._masks = {name: mask.to(self.device) for name, mask in state.get("masks", {}).items()}
        if self._average is not None:
            self._average.load_state_dict(state["average"])


def select_parameters(
    module: LiftedGraph, training: Training, frozen: Collection[str] = ()
) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, by initializer; the others lose their gradient.

    Args:
        module: a lifted graph.
        training: what it freezes stays as it is.
        frozen: names of further initializers that stay, if they are parameters.

    Raises:
        RecipeError: a pattern matches nothing, or nothing is left to train.
        ModelError: weights are in half precision.
    """
    names = module.initializer_names
    for pattern in training.freeze:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise RecipeError(f"freeze pattern {pattern!r} matches none of {', '.join(list(names.values())[:6])}, ...")
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    chosen = []
    for path, parameter in module.named_parameters():
        name = names.get(path, path)
        is_fixed = path in module.scales and not training.scale_rate
        stays = is_fixed or name in frozen or any(fnmatchcase(name, pattern) for pattern in training.freeze)
        parameter.requires_grad_(path in read and not stays)
        if parameter.requires_grad:
            chosen.append((name, parameter))
    half = next((name for name, parameter in chosen if parameter.dtype in (torch.float16, torch.bfloat16)), None)
    if half is not None:
        raise ModelError(
            f"the weight {half!r} is in half precision, in which small steps are lost; train a float32 graph: apply "
            "Float32() before, and Float16() afterwards"
        )
    if not chosen:
        raise RecipeError("nothing is left to train: the graph has no floating-point weights, or all are frozen")
    return chosen


def make_optimiser(parameters: Parameters, training: Training) -> torch.optim.Optimizer:
    """The optimiser; weights of one axis (biases, scales) do not decay."""
    groups = [
        {"params": [one for _, one in parameters if is_matrix(one.shape)], "weight_decay": training.weight_decay},
        {"params": [one for _, one in parameters if not is_matrix(one.shape)], "weight_decay": 0.0},
    ]
    if training.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=MOMENTUM, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def named_parameters(module: nn.Module) -> Parameters:
    """The parameters of a copy of a lifted module, by initializer."""
    assert isinstance(module, LiftedGraph)
    names = module.initializer_names
    return [(names.get(path, path), parameter) for path, parameter in module.named_parameters()]


def zero_masks(parameters: Parameters) -> dict[str, Tensor]:
    """Where weights are not zero, by name, for those that are zero in part."""
    masks = {}
    for name, parameter in parameters:
        kept = parameter.detach() != 0
        if is_matrix(parameter.shape) and 0 < int(kept.sum()) < kept.numel():
            masks[name] = kept
    return masks


def apply_masks(parameters: Parameters, masks: Mapping[str, Tensor]) -> None:
    """Set to zero what is masked."""
    with torch.no_grad():
        for name, parameter in parameters:
            if name in masks:
                parameter.mul_(masks[name])


def _average_of(module: LiftedGraph, decay: float) -> AveragedModel | None:
    """The running average of a module; of its batch statistics too."""
    if not decay:
        return None
    mix = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return AveragedModel(module, multi_avg_fn=mix, use_buffers=True)


def _parts(batch: Batch, told: Mapping[str, Tensor], count: int) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """A batch in parts of about equal size, each with what the teacher told of it."""
    bounds = [len(batch) * number // count for number in range(count + 1)]
    for start, stop in pairwise(bounds):
        if stop > start:
            inputs = {name: tensor[start:stop] for name, tensor in batch.inputs.items()}
            labels = None if batch.labels is None else batch.labels[start:stop]
            yield (
                Batch(inputs, labels),
                {name: tensor[start:stop] if tensor.ndim else tensor for name, tensor in told.items()},
            )

"""alula: make trained models small and fast enough for where they must run, and prove that they still work.

>>> import alula
>>> sorted(alula.__all__)[:3]
['ActivationAware', 'AlulaError', 'Budget']

Names are loaded when they are first used, so that ``import alula`` costs a device next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alula.budget import Budget as Budget
    from alula.compression import compress as compress
    from alula.diagnosing.diagnosis import diagnose as diagnose
    from alula.diagnosing.fixes import apply_fixes as apply_fixes
    from alula.errors import AlulaError as AlulaError
    from alula.graph.cost import measure_cost as measure_cost
    from alula.graph.export import export_module as export_module
    from alula.graph.load import load_model as load_model
    from alula.graph.model import Model as Model
    from alula.graph.trainable import restored as restored
    from alula.graph.trainable import trainable as trainable
    from alula.pruning.choice import Pruning as Pruning
    from alula.pruning.goal import Goal as Goal
    from alula.pruning.pruning import prune as prune
    from alula.quantization import quantize as quantize
    from alula.recipe import Recipe as Recipe
    from alula.recipe import Step as Step
    from alula.recipe import apply_recipe as apply_recipe
    from alula.search.mixed import Limit as Limit
    from alula.search.mixed import Mixing as Mixing
    from alula.search.mixed import mix as mix
    from alula.targets import OnnxRuntime as OnnxRuntime
    from alula.targets import OpenVino as OpenVino
    from alula.task import Task as Task
    from alula.task import open_task as open_task
    from alula.task import task_from_arrays as task_from_arrays
    from alula.techniques import ActivationAware as ActivationAware
    from alula.techniques import Cluster as Cluster
    from alula.techniques import Drop as Drop
    from alula.techniques import Equalize as Equalize
    from alula.techniques import Factorize as Factorize
    from alula.techniques import Float16 as Float16
    from alula.techniques import Float32 as Float32
    from alula.techniques import FoldBatchNorm as FoldBatchNorm
    from alula.techniques import Prune as Prune
    from alula.techniques import Quantize as Quantize
    from alula.techniques import QuantizeDynamic as QuantizeDynamic
    from alula.techniques import QuantizeWeights as QuantizeWeights
    from alula.techniques import Recode as Recode
    from alula.techniques import Rotate as Rotate
    from alula.techniques import Sparsify as Sparsify
    from alula.techniques import SplitOutliers as SplitOutliers
    from alula.techniques import StoreSparse as StoreSparse
    from alula.training.finetuning import Stage as Stage
    from alula.training.finetuning import distill as distill
    from alula.training.finetuning import finetune as finetune
    from alula.training.reconstruction import Reconstruction as Reconstruction
    from alula.training.reconstruction import reconstruct as reconstruct
    from alula.training.synthesis import synthesise as synthesise
    from alula.training.teacher import Remembered as Remembered
    from alula.training.training import Training as Training

__version__ = "0.1.0"

_HOMES = {
    "ActivationAware": "techniques",
    "AlulaError": "errors",
    "Budget": "budget",
    "Cluster": "techniques",
    "Drop": "techniques",
    "Equalize": "techniques",
    "Factorize": "techniques",
    "Float16": "techniques",
    "Float32": "techniques",
    "FoldBatchNorm": "techniques",
    "Goal": "pruning.goal",
    "Limit": "search.mixed",
    "Mixing": "search.mixed",
    "Model": "graph.model",
    "OnnxRuntime": "targets",
    "OpenVino": "targets",
    "Prune": "techniques",
    "Pruning": "pruning.choice",
    "Quantize": "techniques",
    "QuantizeDynamic": "techniques",
    "QuantizeWeights": "techniques",
    "Recipe": "recipe",
    "Recode": "techniques",
    "Reconstruction": "training.reconstruction",
    "Remembered": "training.teacher",
    "Rotate": "techniques",
    "Sparsify": "techniques",
    "SplitOutliers": "techniques",
    "Stage": "training.finetuning",
    "Step": "recipe",
    "StoreSparse": "techniques",
    "Task": "task",
    "Training": "training.training",
    "apply_fixes": "diagnosing.fixes",
    "apply_recipe": "recipe",
    "compress": "compression",
    "diagnose": "diagnosing.diagnosis",
    "distill": "training.finetuning",
    "export_module": "graph.export",
    "finetune": "training.finetuning",
    "load_model": "graph.load",
    "measure_cost": "graph.cost",
    "mix": "search.mixed",
    "open_task": "task",
    "prune": "pruning.pruning",
    "quantize": "quantization",
    "reconstruct": "training.reconstruction",
    "restored": "graph.trainable",
    "synthesise": "training.synthesis",
    "task_from_arrays": "task",
    "trainable": "graph.trainable",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'alula' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"alula.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        from alula.errors import AlulaError

        install = "pip install 'alula[compress]'"
        raise AlulaError(f"alula.{name} needs {error.name!r}, which is not installed; run: {install}") from error


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]

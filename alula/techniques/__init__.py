"""What can be done to a model: one file, one technique, each a frozen dataclass that is its own configuration."""

from alula.techniques.activation_aware import ActivationAware
from alula.techniques.cluster import Cluster
from alula.techniques.drop import Drop
from alula.techniques.dynamic import QuantizeDynamic
from alula.techniques.equalize import Equalize
from alula.techniques.factorize import Factorize
from alula.techniques.float16 import Float16
from alula.techniques.float32 import Float32
from alula.techniques.folding import FoldBatchNorm
from alula.techniques.prune import Prune
from alula.techniques.quantize import Quantize
from alula.techniques.recode import Recode
from alula.techniques.rotate import Rotate
from alula.techniques.sparse_storage import StoreSparse
from alula.techniques.sparsify import Sparsify
from alula.techniques.split_outliers import SplitOutliers
from alula.techniques.technique import Context, Technique
from alula.techniques.weights import QuantizeWeights

__all__ = [
    "ActivationAware",
    "Cluster",
    "Context",
    "Drop",
    "Equalize",
    "Factorize",
    "Float16",
    "Float32",
    "FoldBatchNorm",
    "Prune",
    "Quantize",
    "QuantizeDynamic",
    "QuantizeWeights",
    "Recode",
    "Rotate",
    "Sparsify",
    "SplitOutliers",
    "StoreSparse",
    "Technique",
]

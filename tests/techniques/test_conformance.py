"""Every technique of ours passes the public conformance suite."""

from __future__ import annotations

import pytest

from alula.numerics.ranges import MeanSquaredError, Percentile
from alula.targets import OnnxRuntime, OpenVino
from alula.techniques import (
    ActivationAware,
    Cluster,
    Equalize,
    Factorize,
    Float16,
    FoldBatchNorm,
    Prune,
    Quantize,
    QuantizeDynamic,
    QuantizeWeights,
    Recode,
    Rotate,
    SplitOutliers,
    recode,
)
from alula.testing.conformance import (
    USUAL,
    TargetConformance,
    TechniqueConformance,
    attempt,
    known_run,
    relative_error,
)


class TestFoldBatchNorm(TechniqueConformance):
    tolerance = 1e-5

    @pytest.fixture
    def technique(self):
        return FoldBatchNorm()


class TestSplitOutliers(TechniqueConformance):
    tolerance = 1e-4

    @pytest.fixture
    def technique(self):
        return SplitOutliers(expansion=0.2)


class TestSplitActivationOutliers(TechniqueConformance):
    tolerance = 1e-4

    @pytest.fixture
    def technique(self):
        return SplitOutliers(by="activations", expansion=0.2)


class TestQuantize(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return Quantize()


class TestQuantizeForOpenVino(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return Quantize(
            activation_signed=True,
            activation_symmetric=True,
            range=MeanSquaredError(),
            weight_search=True,
            products=True,
            outputs=False,
        )


class TestQuantizeSmoothed(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return Quantize(smoothing=0.5, activation_signed=True, range=Percentile(100))


class TestQuantizePerTensor(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return Quantize(per_channel=False, activation_bits=16, bias_correction=False)


class TestQuantizeDynamic(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return QuantizeDynamic()


class TestQuantizeDynamicRecurrences(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return QuantizeDynamic(recurrent=True)


class TestQuantizeWeights(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return QuantizeWeights(smallest=1)


class TestQuantizeWeightsByGptq(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return QuantizeWeights(smallest=1, rounding="gptq")


class TestQuantizeWeightsWithMeansOfData(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return QuantizeWeights(smallest=1, bias_correction="data")


class TestQuantizeWeightsWithMeansOfNormalisations(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return QuantizeWeights(smallest=1, bias_correction="normalisations")


class TestQuantizeWeightsInBlocks(TechniqueConformance):
    tolerance = 0.3  # four bits

    @pytest.fixture
    def technique(self):
        return QuantizeWeights(bits=4, block=8, symmetric=False, smallest=1)


class TestQuantizeWeightsByHalfQuadraticSplitting(TechniqueConformance):
    @pytest.fixture
    def technique(self):
        return QuantizeWeights(block=8, symmetric=False, smallest=1, rounding="hqq")


class TestFloat16(TechniqueConformance):
    tolerance = 1e-3

    @pytest.fixture
    def technique(self):
        return Float16()


class TestFloat16Compute(TechniqueConformance):
    tolerance = 1e-2
    beyond = frozenset({"large"})  # activations of 1e15

    @pytest.fixture
    def technique(self):
        return Float16(compute=True)


class TestOnnxRuntime(TargetConformance):
    @pytest.fixture
    def target(self):
        return OnnxRuntime(threads=1)


class TestOpenVino(TargetConformance):
    @pytest.fixture
    def target(self):
        return OpenVino(threads=1)


class TestEqualize(TechniqueConformance):
    tolerance = 1e-4

    @pytest.fixture
    def technique(self):
        return Equalize()


class TestRotate(TechniqueConformance):
    tolerance = 1e-4

    @pytest.fixture
    def technique(self):
        return Rotate()


class TestActivationAware(TechniqueConformance):
    tolerance = 1e-4

    @pytest.fixture
    def technique(self):
        return ActivationAware(3, 8)

    def test_the_gentler_it_is_the_less_it_errs(self):
        """Whatever the bits that it prepares for, the outputs stay."""
        for bits in (2, 4, 8):
            for network, build in USUAL.items():
                feeds, expected = known_run(network)
                result = attempt(ActivationAware(bits, 8), build(), feeds)
                assert relative_error(expected, result.run(feeds)) < 1e-5


class TestPrune(TechniqueConformance):
    tolerance = 10.0  # what a network loses that nothing heals, random as these are

    @pytest.fixture
    def technique(self):
        return Prune(0.5)


class TestPruneByGradients(TechniqueConformance):
    tolerance = 10.0

    @pytest.fixture
    def technique(self):
        return Prune(0.5, "taylor")


class TestPruneByBrainSurgeon(TechniqueConformance):
    tolerance = 10.0

    @pytest.fixture
    def technique(self):
        return Prune(0.5, "brain surgeon")


class TestPruneByZeros(TechniqueConformance):
    tolerance = 10.0

    @pytest.fixture
    def technique(self):
        return Prune(0.5, "zeros", compensate=True)


class TestFactorize(TechniqueConformance):
    tolerance = 1.0

    @pytest.fixture
    def technique(self):
        return Factorize(0.8)


class TestFactorizeWhitened(TechniqueConformance):
    tolerance = 1.5

    @pytest.fixture
    def technique(self):
        return Factorize(0.4, by="share", method="whitened")


class TestFactorizePolyadic(TechniqueConformance):
    tolerance = 1.5

    @pytest.fixture
    def technique(self):
        return Factorize(0.5, by="share", method="cp")


class TestCluster(TechniqueConformance):
    tolerance = 0.4

    @pytest.fixture
    def technique(self):
        return Cluster(16, weighted=True, keep_zeros=True)


class TestRecode(TechniqueConformance):
    form, block = "float8_e4m3", None

    @pytest.fixture
    def technique(self, monkeypatch):
        monkeypatch.setattr(recode, "_NODE_BYTES", -(10**6))  # the networks here are too small to gain
        return Recode(self.form, self.block)


class TestRecodeMicroscaling(TestRecode):
    tolerance = 0.4  # four bits
    form = "mxfp4"


class TestRecodeTernary(TestRecode):
    tolerance = 1.0
    form, block = "ternary", 8

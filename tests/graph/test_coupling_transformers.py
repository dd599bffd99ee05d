"""Networks of the library ``transformers``: zeroing units and taking them out give the same outputs."""

from __future__ import annotations

import logging
import warnings

import pytest

from tests.oracles.zeroing import check_all, exported

pytest.importorskip("transformers")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tests.graph.architectures_transformers import TRANSFORMERS

HEADS = {"bert", "distilbert", "mpnet", "gpt2", "llama", "t5", "whisper", "vit", "swin", "wav2vec2"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_zeroing_and_removing_are_one(name):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    couplings = check_all(*exported(TRANSFORMERS[name]))
    grains = {coupling.grain for coupling in couplings}
    assert ("last" in grains) == (name in HEADS), "heads, and the features within them"

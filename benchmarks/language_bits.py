"""A small language model at 8 to 2 bits: perplexity, distance to the original and bytes, beside other tools.

    python benchmarks/language_bits.py --austen FOLDER [--rows "4 bits" ...] [--tools "GPTQ" llmcompressor ...]

SmolLM2-135M, trained on (networks/smollm.py). Weights of all layers of its blocks are quantized in blocks of 64 along
their inputs, by windows of the validation text of WikiText-2; head and table stay in float. Scores are of windows of
its test text and of Emma (networks/austen.py), each window paired with the original's. alula's recipes and the tools of
gptq_cost.py, whose environments are set up as there; tools that round weights alone, in that of few_bits.py.

Writes results/language_bits.json and .md. What is done is kept and not done again.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from torch import Tensor

import alula
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.measurement import describe_machine, versions
from benchmarks import gptq_cost
from benchmarks.networks import austen, smollm
from benchmarks.peers.calling import Method, call
from benchmarks.peers.commit import read_commit
from benchmarks.peers.files import write_json
from benchmarks.peers.language import BLOCK
from benchmarks.peers.scoring import mean_with_interval

RESULTS: Final = Path(__file__).parent / "results"
ROWS: Final = {"8 bits": 8, "4 bits": 4, "3 bits": 3, "2 bits": 2}
CALIBRATION: Final = 32  # windows
TABLES: Final = ("Op:Gather",)
ALONE: Final[
    dict[str, tuple[str, dict[str, Any], tuple[int, ...]]]
] = {  # tools that see weights alone: their settings and bits
    "HQQ": ("hqq", {}, (8, 4, 3, 2)),
    "optimum-quanto": ("quanto", {}, (8, 4, 2)),
}
WHOLE: Final = "8 bits, activations too"
log = logging.getLogger("benchmarks.language_bits")

Row: TypeAlias = dict[str, Any]


def recipes(bits: int) -> dict[str, alula.Recipe]:
    """What alula is tried at."""

    def rounded(**settings: Any) -> alula.Step:
        technique = alula.QuantizeWeights(bits=bits, block=BLOCK, rounding="gptq", **settings)
        return alula.Step(technique, exclude=TABLES, sequential=True)

    nearest = alula.QuantizeWeights(bits=bits, block=BLOCK)
    return {
        "alula: GPTQ in sequence": alula.Recipe((rounded(),)),
        "alula: GPTQ in sequence, zero points": alula.Recipe((rounded(symmetric=False),)),
        "alula: turned, GPTQ in sequence": alula.Recipe((alula.Step(alula.Rotate()), rounded())),
        "alula: turned, GPTQ in sequence, zero points": alula.Recipe(
            (alula.Step(alula.Rotate()), rounded(symmetric=False))
        ),
        "alula: scaled by activations, GPTQ in sequence": alula.Recipe(
            (alula.Step(alula.ActivationAware(bits=bits, block=BLOCK), exclude=TABLES), rounded())
        ),
        "alula: to the nearest": alula.Recipe((alula.Step(nearest, exclude=TABLES),)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, WHOLE], default=[*ROWS, WHOLE])
    parser.add_argument("--tools", nargs="+", help="alula's recipes and other tools, as the page names them")
    parser.add_argument("--windows", type=int, default=20, help="of each text")
    parser.add_argument("--austen", type=Path, required=True, help="where r-cran-janeaustenr was unpacked")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, default=gptq_cost.WORK, help="where networks are kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    smollm.prepare(arguments.work)
    path = arguments.out / "language_bits.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}}
    scorer = Scorer(arguments.work, arguments.austen, arguments.windows)
    results["float"] = scorer.original()
    for row in arguments.rows:
        found = results["rows"].setdefault(row, {})
        for name, make in contenders(row, arguments.work).items():
            if name not in found and (not arguments.tools or name in arguments.tools):
                found[name] = measured(make, scorer) | {"commit": read_commit()}
                log.info("%s, %s: %s", row, name, found[name])
                results |= {"windows": arguments.windows, "machine": describe_machine(), "versions": versions()}
                write_json(path, results)
                path.with_suffix(".md").write_text(render(results), encoding="utf-8")


class Scorer:
    """Windows of two texts, and what the original makes of them, kept on disk."""

    def __init__(self, work: Path, austen_folder: Path, count: int) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(work / "hf")
        novel = smollm.windows(tokenizer, austen.emma(austen_folder))
        self.texts = {"WikiText-2": np.load(work / "test.npy")[:count], "Emma": novel[:count]}
        self._model = alula.load_model(work / "model.onnx")
        self._folder = work / "original"

    def original(self) -> dict[str, float]:
        """Perplexity of the original, by text."""
        return {text: float(np.exp(np.mean([smollm.loss(row, known) for row, known in self._known(text)])))
                for text in self.texts}  # fmt: skip

    def score(self, model: Model) -> Row:
        """Perplexity, its paired rise in the logarithm with an interval, and divergence in nats, by text."""
        scores = {}
        for text in self.texts:
            losses, rises, divergences = [], [], []
            for row, known in self._known(text):
                found = smollm.log_probabilities(model, row)
                losses.append(smollm.loss(row, found))
                rises.append(losses[-1] - smollm.loss(row, known))
                divergences.append(float((known.exp() * (known - found)).sum(-1).mean()))
            scores[text] = {"perplexity": float(np.exp(np.mean(losses))), "rise": mean_with_interval(np.array(rises)),
                            "divergence": float(np.mean(divergences))}  # fmt: skip
        return scores

    def _known(self, text: str) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Each window, and the original's log p of what follows."""
        import torch

        self._folder.mkdir(exist_ok=True)
        for number, row in enumerate(self.texts[text]):
            path = self._folder / f"{text}-{number}.npy"
            if not path.is_file():
                np.save(path, smollm.log_probabilities(self._model, row).numpy())
            yield row, torch.from_numpy(np.load(path))


Made: TypeAlias = tuple[Model, Row]
Make: TypeAlias = Callable[[], Made]


def contenders(row: str, work: Path) -> dict[str, Make]:
    """Functions that make a quantized network and what is known of it, by name."""
    if row == WHOLE:
        dynamic = alula.Step(alula.QuantizeDynamic())
        turned = alula.Recipe((alula.Step(alula.Rotate()), dynamic))
        spared = alula.Recipe((alula.Step(alula.QuantizeDynamic(), exclude=("*.down_proj",)),))
        return {
            "alula: dynamic": partial(by_recipe, alula.Recipe((dynamic,)), work),
            "alula: turned, dynamic": partial(by_recipe, turned, work),
            "alula: dynamic, what gates feed in float": partial(by_recipe, spared, work),
        }
    bits = ROWS[row]
    ours: dict[str, Make] = {name: partial(by_recipe, recipe, work) for name, recipe in recipes(bits).items()}
    theirs: dict[str, Make] = {tool: partial(by_tool, tool, bits, work) for tool in gptq_cost.TOOLS if tool != "alula"}
    return ours | theirs | {
        name: partial(by_weights, tool, dict(settings) | {"bits": bits, "block": BLOCK}, work)
        for name, (tool, settings, widths) in ALONE.items()
        if bits in widths
    }  # fmt: skip


def by_recipe(recipe: alula.Recipe, work: Path) -> Made:
    """What a recipe makes of the network."""
    feeds = [{"input_ids": row[None]} for row in np.load(work / "valid.npy")[:CALIBRATION]]
    made = alula.apply_recipe(alula.load_model(work / "model.onnx"), recipe, feeds)
    folder = work / "made-recipe"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = made.save(folder / "model.onnx")
    return made, {"file_bytes": path.stat().st_size}


def by_tool(tool: str, bits: int, work: Path) -> Made:
    """What another tool makes of it, in alula's graph."""
    report = gptq_cost.run(tool, CALIBRATION, work, bits)
    if report.failure:
        raise alula.AlulaError(report.failure)
    made = smollm.with_weights(alula.load_model(work / "model.onnx"), work / f"made-{tool}" / "made")
    return made, {"versions": dict(report.versions)}


def by_weights(tool: str, settings: Mapping[str, Any], work: Path) -> Made:
    """What a tool of few_bits.py makes of the network, or of its matrices alone."""
    model, folder = alula.load_model(work / "model.onnx"), work / f"made-{tool}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    layers = [layer for layer in model.layers() if layer.operator == "MatMul"]
    given = folder / "matrices.npz"
    matrices: dict[str, Any] = {layer.weight: model.weight(layer.weight).T for layer in layers}
    np.savez(given, **matrices)
    method = Method(tool, tool, settings, module="benchmarks.peers.weights_only", environment=".venv-fewbits")
    report = call(method, given.resolve(), given.resolve(), folder)
    if report.failure:
        raise alula.AlulaError(report.failure)
    editor = Editor(model.edit())
    with np.load(folder / "weights.npz") as file:
        for layer in layers:
            editor.replace_constant(layer.weight, np.ascontiguousarray(file[layer.weight].T))
    return model.edited(editor.model), {"versions": dict(report.versions)}


def measured(make: Make, scorer: Scorer) -> Row:
    """The scores of what a contender makes, or why there are none."""
    try:
        made, facts = make()
    except alula.AlulaError as error:
        return {"failure": str(error)}
    return facts | {"scores": scorer.score(made)}


HEAD: Final = f"""# A small language model at a few bits

Written by `benchmarks/language_bits.py`: SmolLM2-135M, trained on for some steps so that it lies on no grid; weights of
all layers of its blocks in blocks of {BLOCK}, by {CALIBRATION} windows of {smollm.LENGTH} tokens; head and table in
float. Rise is of the mean of -log p over that of the original, paired by window, with a normal 95 % interval;
divergence is the mean Kullback-Leibler divergence from the original's next words, in nats. Tools that round by blocks
do so with the same blocks; *turned* makes head and table two tensors, where they were one.
"""


def render(results: Row) -> str:
    """The page of results."""
    said = ", ".join(f"{text} {value:.3f}" for text, value in results["float"].items())
    lines = [HEAD, f"Perplexity in float: {said}; {results['windows']} windows of each text.", ""]
    for name, row in results["rows"].items():
        lines += [f"## {name}", "", "| made by | text | perplexity | rise | divergence |", "|---|---|---|---|---|"]
        lines += [line for tool, made in row.items() for line in _lines(tool, made)]
        lines.append("")
    every = [made for row in results["rows"].values() for made in row.values()]
    known = sorted({f"{key} {value}" for made in every for key, value in made.get("versions", {}).items()})
    commits = sorted({made["commit"] for made in every})
    lines.append(f"{results['machine'].get('processor', '')}; {', '.join(known)}; commit {', '.join(commits)}.")
    return "\n".join([*lines, ""])


def _lines(tool: str, made: Mapping[str, Any]) -> Sequence[str]:
    if "failure" in made:
        return [f"| {tool} | failed: {made['failure']} | | | |"]
    return [f"| {tool} | {text} | {one['perplexity']:.2f} | {_interval(one['rise'])} | {one['divergence']:.4f} |"
            for text, one in made["scores"].items()]  # fmt: skip


def _interval(rise: Sequence[float]) -> str:
    mean, low, high = rise
    return f"{mean:+.4f} ({low:+.4f} to {high:+.4f})"


if __name__ == "__main__":
    main()

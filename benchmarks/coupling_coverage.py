"""Which networks channels, heads and features can be taken out of, beside Torch-Pruning.

    python benchmarks/coupling_coverage.py [--networks resnet ...]

Both are given the same modules with the same weights. Each coupling (here) or group (there) is taken out of a fresh
network by itself: it must run, keep the shape of its outputs, and give what the network gives with zeros in all weights
of these units. Writes results/coupling_coverage.json and .md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alula import export_module
from alula.errors import AlulaError
from alula.graph.channels import Coupling, find_couplings
from alula.graph.editing import Editor
from alula.graph.model import Model
from alula.graph.removal import remove_units
from alula.graph.running import Runner
from alula.measurement import describe_machine, versions
from benchmarks.peers.calling import ROOT
from benchmarks.peers.commit import read_commit

log = logging.getLogger("benchmarks.coupling_coverage")
RESULTS = Path(__file__).parent / "results"
PRUNING_PYTHON = ROOT / ".venv-pruning" / "bin" / "python"
SHARE, TOLERANCE = 0.25, 1e-3  # of the units of each coupling; relative to the largest output
TIMEOUT_SECONDS = 600

architectures: Any = importlib.import_module("tests.graph.architectures")  # modules of torch alone, for both sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(architectures.ARCHITECTURES))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not PRUNING_PYTHON.is_file():
        sys.exit(
            "Torch-Pruning is not installed: python3 -m venv .venv-pruning && "
            ".venv-pruning/bin/pip install -r benchmarks/peers/requirements-pruning.txt"
        )
    torch.set_num_threads(1)
    rows, theirs = {}, {}
    for name in arguments.networks:
        peer = ask_torch_pruning(name)
        theirs.update(peer["versions"])
        rows[name] = {"alula": examine(name), "torch-pruning": peer["row"]}
        log.info("%s: %s", name, rows[name])
    origin = {"machine": describe_machine(), "versions": {**versions(), **theirs}, "commit": read_commit()}
    RESULTS.mkdir(exist_ok=True)
    content = json.dumps({"rows": rows, **origin}, indent=1) + "\n"
    (RESULTS / "coupling_coverage.json").write_text(content, encoding="utf-8")
    (RESULTS / "coupling_coverage.md").write_text(render(rows, origin), encoding="utf-8")


def examine(name: str) -> dict[str, Any]:
    """How many couplings there are, how many are right, and why others are not."""
    torch.manual_seed(0)
    module, example = architectures.ARCHITECTURES[name]()
    arrays = [array.numpy() for array in (example if isinstance(example, tuple) else (example,))]
    try:
        model = export_module(module.eval(), example, dynamic_batch=name not in architectures.TIME_FIRST)
        couplings = [coupling for coupling in find_couplings(model) if coupling.size > 1]
    except AlulaError as error:
        return {"groups": 0, "right": 0, "failures": [str(error)]}
    verdicts = [try_coupling(model, coupling, arrays) for coupling in couplings]
    failures = sorted({verdict for verdict in verdicts if verdict != "right"})
    return {"groups": len(verdicts), "right": verdicts.count("right"), "failures": failures}


def try_coupling(model: Model, coupling: Coupling, arrays: list[np.ndarray]) -> str:
    """Take units of one coupling out; ``right``, or what is wrong."""
    units = list(range(max(1, int(SHARE * coupling.size))))
    try:
        found = run(remove_units(model, {coupling.name: units}), arrays)
    except AlulaError as error:
        return f"does not run: {error}"
    wanted = run(zeroed(model, coupling, units), arrays)
    scale = TOLERANCE * max(float(np.abs(array).max()) for array in run(model, arrays).values())
    close = all(
        array.shape == found[output].shape and np.allclose(found[output], array, rtol=TOLERANCE, atol=scale)
        for output, array in wanted.items()
    )
    return "right" if close else "gives other outputs than zeroing"


def zeroed(model: Model, coupling: Coupling, units: list[int]) -> Model:
    """The graph with zeros in all weights of these units."""
    editor = Editor(model.edit())
    for member in coupling.members:
        array = editor.array(member.initializer).copy()
        places: list[Any] = [slice(None)] * array.ndim
        places[member.axis] = member.indices[units].reshape(-1)
        array[tuple(places)] = 0
        editor.replace_constant(member.initializer, array)
    return model.edited(editor.model)


def run(model: Model, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    """What a graph gives for these inputs, in their order."""
    return Runner(model, threads=1)({spec.name: array for spec, array in zip(model.inputs, arrays, strict=True)})


def ask_torch_pruning(name: str) -> dict[str, Any]:
    """The same of Torch-Pruning, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [str(PRUNING_PYTHON), "-W", "ignore", "-m", "benchmarks.peers.pruning", str(report), name]
        try:
            subprocess.run(
                command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=TIMEOUT_SECONDS, check=True,
                capture_output=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            reason = f"not done after {TIMEOUT_SECONDS} seconds"
            return {"row": {"groups": 0, "right": 0, "failures": [reason]}, "versions": {}}
        told = json.loads(report.read_text(encoding="utf-8"))
        return {"row": told["rows"][name], "versions": told["versions"]}


def manages(row: dict[str, Any]) -> bool:
    """Whether something can be taken out, and all that is proposed is right."""
    return bool(row["groups"] > 0 and row["right"] == row["groups"])


def render(rows: dict[str, dict[str, Any]], origin: dict[str, Any]) -> str:
    """The page of results."""
    counts = {tool: sum(manages(row[tool]) for row in rows.values()) for tool in ("alula", "torch-pruning")}
    some = sum(row["torch-pruning"]["right"] > 0 for row in rows.values())
    lines = [
        "# Which networks units can be taken out of",
        "",
        "Written by `benchmarks/coupling_coverage.py`. Each coupling that alula finds, and each group that the pruner",
        "of Torch-Pruning proposes, is taken out of a fresh network by itself. It is right if the network runs, its",
        "outputs keep their shape, and they are those of the network with zeros in all weights of these units. Groups",
        "of Torch-Pruning that change the outputs' shape are not counted: it would be told to ignore those layers.",
        "Neither is told anything of the architecture; with Torch-Pruning, who prunes heads also changes the module's",
        "own numbers of heads and sizes by hand. A coupling of heads and one of features within them count as two.",
        "Torch-Pruning also takes features out of layer normalisations, which changes the statistics of what stays: it",
        "may be wanted, before training, but it is not zeroing.",
        "",
        f"Of {len(rows)} networks, alula manages {counts['alula']} (something can go, and all that it proposes is",
        f"right), Torch-Pruning {counts['torch-pruning']}; in {some} at least one of its groups is right.",
        "",
        "| network | alula: right, of couplings | Torch-Pruning: right, of groups | what fails there |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        ours, theirs = row["alula"], row["torch-pruning"]
        failures = "; ".join((*ours["failures"], *theirs["failures"])).replace("|", "/")
        cells = f"{ours['right']} of {ours['groups']} | {theirs['right']} of {theirs['groups']} | {failures}"
        lines.append(f"| {name} | {cells} |")
    known = ", ".join(f"{package} {version}" for package, version in origin["versions"].items())
    lines += ["", f"{origin['machine'].get('processor', '')}; {known}; commit {origin['commit']}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

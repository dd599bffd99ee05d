"""The command line. Every command is one public function; what it needs is imported when it runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from alula.errors import AlulaError, BudgetError, DataError, StorageError

try:
    import typer
except ModuleNotFoundError as error:
    raise SystemExit("alula: the command line needs typer; run: pip install 'alula[compress]'") from error

if TYPE_CHECKING:
    from alula.budget import Budget
    from alula.diagnosing.fixes import Fixed
    from alula.diagnosing.result import Diagnosis
    from alula.graph.model import Model
    from alula.measurement.measurement import Measurement
    from alula.search.result import Frontier
    from alula.techniques import Technique

EXIT_CERTIFIED, EXIT_ERROR, EXIT_USAGE, EXIT_NOT_HELD, EXIT_NOT_CERTIFIED = 0, 1, 2, 3, 4
EXIT_FAULT, EXIT_INTERRUPTED = 70, 130
LOG_FILE = "alula-error.log"
EXIT_CODES = (
    "[bold]Exit codes:[/bold] [bold]0[/bold] done (compress: the budget holds, and is certified); "
    "[bold]1[/bold] an error in what was given, named on standard error; [bold]2[/bold] wrong usage; "
    "[bold]3[/bold] finished, but no candidate held the budget, and the closest was written; "
    "[bold]4[/bold] the budget holds, but there are too few examples to certify it; "
    "[bold]70[/bold] a fault of alula's own, with its traceback in a log file; "
    "[bold]130[/bold] interrupted, and the same command goes on where it was."
)

app = typer.Typer(
    name="alula",
    help="Make trained models small and fast enough for where they must run, and prove that they still work.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

TargetName = Literal["onnxruntime", "openvino"]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, and nothing else, on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected fault.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads to run with; 0 is one for each physical core.")]
TargetOption = Annotated[TargetName, typer.Option(help="The runtime that will run the model.")]
Data = Annotated[Path | None, typer.Option(help="Arrays named as the model's inputs (.npz, .npy or a folder).")]


@app.command(
    epilog=f"Example: [bold]alula compress model.onnx --data data.npz --max-drop 1% --out small[/bold]\n\n{EXIT_CODES}"
)
def compress(
    task: Annotated[Path, typer.Argument(help="A task file (.py with a function task()), or a model (.onnx).")],
    *,
    out: Annotated[Path, typer.Option(help="Folder to write to; an interrupted run there is taken up again.")],
    max_drop: Annotated[
        str, typer.Option(help="Largest loss of score: '1%' (one point of 0..1), '0.3', or '2% relative'.")
    ] = "1%",
    minimize: Annotated[Literal["latency", "size", "energy"], typer.Option(help="What to make small.")] = "latency",
    data: Data = None,
    labels: Annotated[Path | None, typer.Option(help="Labels, where the data hold none.")] = None,
    metric: Annotated[str | None, typer.Option(help="How outputs are scored, such as accuracy or cosine.")] = None,
    target: TargetOption = "onnxruntime",
    threads: Threads = 0,
    confidence: Annotated[str, typer.Option(help="Of the certificate.")] = "95%",
    max_size: Annotated[str | None, typer.Option(help="Largest size of the files, such as 2MB.")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="Largest median latency of one example.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Search for the smallest or fastest model that loses no more than the budget allows, and certify it."""
    command = shlex.join(["alula", *sys.argv[1:]])
    with _explaining(out=out, debug=debug, resume=command):
        frontier = _compress(
            _budget(max_drop, confidence, minimize, max_size, max_latency_ms),
            task=task, out=out, data=data, labels=labels, metric=metric, target=(target, threads), seed=seed,
        )  # fmt: skip
        frontier = replace(frontier, command=command)
        _write_report(frontier, out)
        _print_frontier(frontier, out, as_json=as_json)
    raise typer.Exit(_exit_code(frontier))


@app.command(epilog="Example: [bold]alula analyze model.onnx[/bold]")
def analyze(
    model: Annotated[Path, typer.Argument(help="The model (.onnx).")],
    *,
    target: TargetOption = "onnxruntime",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show a model's layers, what each costs, its peak activation memory, and what can be done on a target."""
    with _explaining(debug=debug):
        from alula.graph.load import load_model

        opened = load_model(model, allow_quantized=True)
        found = _analysis(opened, target)
        if as_json:
            _print_json(found)
        else:
            _print_analysis(found)


@app.command(epilog="Example: [bold]alula quantize model.onnx -o small.onnx --data calibration.npz[/bold]")
def quantize(
    model: Annotated[Path, typer.Argument(help="The model (.onnx).")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    method: Annotated[
        Literal["static", "dynamic", "weights", "float16"] | None,
        typer.Option(help="static takes --data, the others none; left out: static with data, else dynamic or weights."),
    ] = None,
    bits: Annotated[int | None, typer.Option(min=2, max=8, help="Bits of the weights; needs --method.")] = None,
    block: Annotated[int | None, typer.Option(min=1, help="Weights that share a scale (method weights).")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Layers to leave alone; a pattern, repeatable.")] = None,
    data: Data = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply one technique to a model, without a search: nothing is measured or certified."""
    with _explaining(debug=debug):
        made = _quantize(model, _technique(method, bits, block, data), exclude or (), data)
        from alula.comparison import files_of

        files = files_of(model)
        if out.exists() and any(out.samefile(file) for file in files):
            raise StorageError(f"--out {out} would overwrite the model that it is made from; choose another file")
        before = sum(file.stat().st_size for file in files)
        made.save(out)
        notes = [note.to_json() for note in made.notes]
        if as_json:
            _print_json({"path": str(out), "size_bytes": made.size_bytes, "original_bytes": before, "notes": notes})
            return
        from alula.search.words import bytes_in_words

        console = _console()
        console.print(f"{out}: {bytes_in_words(made.size_bytes)}, was {bytes_in_words(before)}", markup=False)
        if made.size_bytes >= before:
            console.print("  the file did not shrink: what it needs beside the weights outweighs them", markup=False)
        for note in made.notes:
            console.print(f"  {note}", markup=False)


@app.command(epilog="Example: [bold]alula measure model.onnx small.onnx --data data.npz[/bold]")
def measure(
    models: Annotated[list[Path], typer.Argument(help="Models (.onnx) with the same inputs; the original first.")],
    *,
    data: Data = None,
    target: TargetOption = "onnxruntime",
    threads: Threads = 0,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of timing for each model; throughput adds half.")] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of turns, and of random inputs.")] = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure models against each other on a target, interleaved in one run, and compare their outputs."""
    with _explaining(debug=debug):
        from alula.comparison import compare_models
        from alula.targets import target_named

        results, notes = compare_models(models, target_named(target, threads), data=data, seconds=seconds, seed=seed)
        if as_json:
            plain = {name: {key: value.to_json() for key, value in row.items()} for name, row in results.items()}
            _print_json({"measurements": plain, "notes": notes})
        else:
            _print_measurements(results, notes)


@app.command(epilog="Example: [bold]alula diagnose small.onnx model.onnx --data data.npz[/bold]")
def diagnose(
    quantized: Annotated[Path, typer.Argument(help="The quantized model (.onnx), whoever made it.")],
    original: Annotated[Path, typer.Argument(help="The float model (.onnx) that it was made from.")],
    *,
    data: Annotated[Path, typer.Option(help="Inputs as they come in use (.npz, .npy or a folder).")],
    out: Annotated[Path | None, typer.Option(help="Folder for the page, and with --fix the model.")] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Quantize the float model anew so that the causes are met.")
    ] = False,
    layers: Annotated[int, typer.Option(min=0, help="Layers to quantize alone, to see what each costs.")] = 60,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what quantization did to each layer of a model, why, and what helps; the worst layer first."""
    with _explaining(out=out, debug=debug):
        found, fixed = _diagnose(quantized, original, data, fix=fix, layers=layers)
        written = [] if out is None else _write_diagnosis(found, fixed, out, quantized.name)
        if as_json:
            _print_json(found.to_json() | ({} if fixed is None else {"fixed": fixed.to_json()}))
        else:
            _print_diagnosis(found, fixed, written)


@app.command(epilog="Example: [bold]alula report small[/bold]")
def report(
    folder: Annotated[Path, typer.Argument(help="The folder that 'alula compress --out' wrote.")],
    *,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the page of a finished run again, and print its summary."""
    with _explaining(debug=debug):
        from alula.report import write_report
        from alula.search.result import read_result

        frontier = read_result(folder)
        write_report(frontier, folder)
        _print_frontier(frontier, folder, as_json=as_json)


def main() -> None:
    """The entry point of the command ``alula``."""
    app()


@contextmanager
def _explaining(*, out: Path | None = None, debug: bool = False, resume: str = "") -> Iterator[None]:
    """Turn what was raised into one message on standard error and an exit code; a traceback goes to a log file."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):  # the reader of a pipe went away: typer ends quietly
        raise
    except AlulaError as error:
        _fail(f"alula: {error}", EXIT_ERROR)
    except KeyboardInterrupt:
        after = f"; what is finished is kept, go on with: {resume}" if resume else ""
        _fail(f"alula: interrupted{after}", EXIT_INTERRUPTED)
    except Exception as error:  # noqa: BLE001  (the last line of defence: whatever it is, it is logged and named)
        log = _log_fault(out)
        if debug:
            sys.stderr.write(traceback.format_exc())
        reason = (str(error).strip() or "no message").splitlines()[0]
        fault = f"unexpected {type(error).__name__}: {reason}"
        _fail(f"alula: {fault}; this is a fault of alula, please report it with {log}", EXIT_FAULT)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    raise typer.Exit(code) from None


def _log_fault(out: Path | None) -> Path:
    """Write the traceback to the output folder, or where that is impossible to the system's temporary folder."""
    for folder in (*([out] if out is not None else []), Path(tempfile.gettempdir())):
        path = folder / (LOG_FILE if folder == out else f"alula-error-{os.getpid()}.log")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(f"alula {' '.join(sys.argv[1:])}\n{traceback.format_exc()}", encoding="utf-8")
        except OSError:
            continue
        return path
    return Path("--debug")


def _budget(
    max_drop: str, confidence: str, minimize: Literal["latency", "size", "energy"], max_size: str | None,
    max_latency_ms: float | None,
) -> Budget:  # fmt: skip
    from alula.budget import Budget, parse_bytes, parse_drop

    drop, relative = parse_drop(max_drop)
    return Budget(
        max_drop=drop,
        relative=relative,
        confidence=_fraction(confidence),
        minimize=minimize,
        max_size_bytes=None if max_size is None else parse_bytes(max_size),
        max_latency_ms=max_latency_ms,
    )


def _fraction(text: str) -> float:
    """'95%' or '0.95'."""
    number, percent, rest = text.strip().partition("%")
    try:
        return float(number) / (100 if percent else 1) if not rest.strip() else float("nan")
    except ValueError:
        raise BudgetError(f"cannot read {text!r} as a confidence; write '95%' or '0.95'") from None


def _compress(
    budget: Budget, *, task: Path, out: Path, data: Path | None, labels: Path | None, metric: str | None,
    target: tuple[TargetName, int], seed: int,
) -> Frontier:  # fmt: skip
    from alula.search.explore import compress as run
    from alula.targets import target_named
    from alula.task import open_task

    runtime = target_named(*target)
    opened = open_task(task, data=data, labels=labels, metric=metric)
    with _showing_progress() as on_event:
        return run(opened, budget, runtime, out, seed=seed, on_event=on_event)


@contextmanager
def _showing_progress() -> Iterator[Any]:
    """A function that takes events and shows them, with the time left, on standard error."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from alula.search.events import Event

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stages: list[TaskID] = []
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def show(event: Event) -> None:
            if event.kind == "stage":
                for stage in stages:
                    progress.remove_task(stage)
                stages[:] = [progress.add_task(escape(event.text), total=event.total or None)]
                console.print(event.text, markup=False, style="bold", soft_wrap=True)
            elif event.kind == "progress" and stages:
                progress.update(stages[0], completed=event.done, total=event.total or None)
            elif event.kind != "progress":
                style = "yellow" if event.kind == "note" else ""
                console.print(f"  {event.text}", markup=False, style=style, soft_wrap=True)

        yield show


def _write_report(frontier: Frontier, out: Path) -> None:
    from alula.report import write_report
    from alula.search.result import write_result

    write_result(frontier, out)
    write_report(frontier, out)


def _exit_code(frontier: Frontier) -> int:
    from alula.search.words import state_of

    codes = {"certified": EXIT_CERTIFIED, "uncertified": EXIT_NOT_CERTIFIED, "failed": EXIT_NOT_HELD}
    return codes[state_of(frontier)]


def _analysis(model: Model, target: TargetName) -> dict[str, Any]:
    """A model's layers and cost, and what could be done for a target, as plain data."""
    from alula.graph.cost import measure_cost
    from alula.search.propose import propose
    from alula.targets import target_named

    cost = measure_cost(model)
    proposals, notes = propose({"model": model}, target_named(target), "latency") if model.layers() else ((), ())
    return {
        "inputs": [str(spec) for spec in model.inputs],
        "outputs": [str(spec) for spec in model.outputs],
        "size_bytes": model.size_bytes,
        "peak_activation_bytes": cost.peak_activation_bytes,
        "macs": cost.total_macs,
        "parameters": cost.parameters,
        "layers": [asdict(layer) for layer in cost.layers],
        "unknown_shapes": list(cost.unknown),
        "options": [{"name": one.name, "why": one.reason} for one in proposals],
        "notes": [note.to_json() for note in (*model.notes, *notes)],
    }


def _technique(method: str | None, bits: int | None, block: int | None, data: Path | None) -> Technique | None:
    """What was asked for, None being the default; an option that would do nothing is refused."""
    from alula.techniques import Float16, Quantize, QuantizeDynamic, QuantizeWeights

    rules = (
        ("--data is for --method static", data, (None, "static")),
        ("--bits is for --method static, dynamic or weights", bits, ("static", "dynamic", "weights")),
        ("--block is for --method weights", block, ("weights",)),
    )
    for rule, given, methods in rules:
        if given is not None and method not in methods:
            raise DataError(f"{rule}, got {f'--method {method}' if method else 'no --method'}; mend one of them")
    if method == "static" and data is None:
        raise DataError("--method static needs --data to calibrate with: arrays named as the model's inputs")
    if method == "float16":
        return Float16()
    if method == "weights":
        return QuantizeWeights(bits=bits or 8, block=block)
    if method == "dynamic":
        return QuantizeDynamic(weight_bits=bits or 8)
    return None if bits is None else Quantize(weight_bits=bits)  # the default for data is static


def _quantize(path: Path, technique: Technique | None, exclude: Sequence[str], data: Path | None) -> Model:
    from alula.comparison import read_inputs
    from alula.graph.load import load_model
    from alula.quantization import quantize as run
    from alula.task_rows import fit_inputs

    model = load_model(path)
    arrays = None if data is None else fit_inputs(model, read_inputs(model, data))
    return run(model, arrays, technique=technique, exclude=exclude)


def _diagnose(
    quantized: Path, original: Path, data: Path, *, fix: bool, layers: int
) -> tuple[Diagnosis, Fixed | None]:  # fmt: skip
    from alula.comparison import read_inputs
    from alula.diagnosing.diagnosis import diagnose as run
    from alula.diagnosing.fixes import apply_fixes
    from alula.graph.load import load_model
    from alula.task_rows import fit_inputs

    model = load_model(original)
    arrays = fit_inputs(model, read_inputs(model, data))
    found = run(quantized, model, arrays, layers=layers)
    return found, apply_fixes(quantized, model, arrays, diagnosis=found, layers=layers) if fix else None


def _write_diagnosis(found: Diagnosis, fixed: Fixed | None, out: Path, title: str) -> list[Path]:
    from alula.report import write_diagnosis

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {out}: {error.strerror or error}; choose another") from error
    made = [] if fixed is None else [fixed.model.save(out / "fixed.onnx")]
    return [write_diagnosis(found, out, title=title, fixed=fixed), *made]


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    sys.stdout.flush()  # a reader that went away is noticed here, not when Python ends


def _print_frontier(frontier: Frontier, folder: Path, *, as_json: bool) -> None:
    if as_json:
        _print_json(frontier.to_json())
        return
    from rich.table import Table

    from alula.search.words import bytes_in_words, score_in_words, verdict_in_words

    console = _console()
    console.print(verdict_in_words(frontier), markup=False, style="bold")
    if frontier.certificate is not None:
        console.print(frontier.certificate.sentence(frontier.metric, labelled=frontier.labelled), markup=False)
    table = Table("candidate", "size", "speed-up", _plain(frontier.metric), "outcome")
    for one in (frontier.original, *frontier.candidates):
        ratio = one.measurements.get("latency_ratio")
        speed = "" if ratio is None else f"{ratio.value:.2f}x"
        row = (one.name, bytes_in_words(one.size_bytes), speed, score_in_words(one.score), one.verdict.split(";")[0])
        table.add_row(*map(_plain, row), style="bold" if one.name == frontier.chosen else None)
    console.print(table, soft_wrap=False)
    shipped = (folder / "recipe.json").exists() and (frontier.chosen or frontier.closest)
    what = "The model, its recipe and its page are" if shipped else "No model was written; the page is"
    console.print(f"{what} in {folder}; open {folder / 'report.html'}", markup=False)


def _print_diagnosis(found: Diagnosis, fixed: Fixed | None, written: Sequence[Path]) -> None:
    from rich.table import Table

    from alula.diagnosing.words import decibels_in_words, error_in_words, verdict_in_words

    console = _console()
    console.print(verdict_in_words(found), markup=False, style="bold")
    table = Table("layer", "bits", "error at the end", "dB at its output", "added", "weights", "activation", "cause")
    for row in found.layers:
        ratios = (row.sqnr_db, row.added_db, row.weights_db, row.activations_db)
        table.add_row(_plain(row.name), row.bits, error_in_words(row.error), *map(decibels_in_words, ratios), row.cause)
    console.print(table, soft_wrap=False)
    for one in found.findings:
        console.print(f"{one.layer}: {one.cause}: {one.text}; what helps: {one.fix}", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    if fixed is not None:
        console.print(str(fixed), markup=False, style="bold")
    for path in written:
        console.print(f"written: {path}", markup=False)


def _print_measurements(results: dict[str, dict[str, Measurement]], notes: Sequence[str]) -> None:
    from rich.table import Table

    table = Table("", *map(_plain, results))
    for key in dict.fromkeys(key for row in results.values() for key in row):
        name = re.sub("_(bytes|ms|mj|per_s)$", "", key).replace("_", " ")
        table.add_row(name, *(str(row[key]) if key in row else "-" for row in results.values()))
    console = _console()
    console.print(table, soft_wrap=False)
    for note in notes:
        console.print(note, markup=False)


def _print_analysis(found: dict[str, Any]) -> None:
    from rich.table import Table

    from alula.search.words import bytes_in_words, count_in_words

    console = _console()
    size, peak = bytes_in_words(found["size_bytes"]), bytes_in_words(found["peak_activation_bytes"])
    macs, parameters = count_in_words(found["macs"]), count_in_words(found["parameters"])
    console.print(f"{size}, {parameters} parameters, {macs} MACs, at most {peak} of activations at once", markup=False)
    for kind in ("inputs", "outputs"):
        console.print(f"{kind}: {'; '.join(found[kind])}", markup=False)
    table = Table("layer", "operator", "weights", "MACs", "activations")
    for layer in found["layers"]:
        macs = "?" if layer["macs"] is None else count_in_words(layer["macs"])
        moved = "?" if layer["activation_bytes"] is None else bytes_in_words(layer["activation_bytes"])
        table.add_row(_plain(layer["name"]), layer["operator"], bytes_in_words(layer["weight_bytes"]), macs, moved)
    console.print(table, soft_wrap=False)
    if found["unknown_shapes"]:
        unknown = len(found["unknown_shapes"])
        console.print(f"{unknown} tensors have shapes that are known only when running; they count for nothing here")
    for option in found["options"]:
        console.print(f"can be done: {option['name']}: {option['why']}", markup=False)
    for note in found["notes"]:
        console.print(f"note: {note['place']}: {note['text']}", markup=False)


def _plain(text: str) -> str:
    """Text that rich shows as it is, whatever brackets it holds."""
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()

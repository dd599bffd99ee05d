"""Where the examples find their data and keep the models they have exported."""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ORIGINS = {
    "imagenet-sample-1000.npz": (
        "1,000 ImageNet photos, one a class, from github.com/EliSchwartz/imagenet-sample-images, short side 288: "
        "arrays 'jpeg' (uint8, all files one after another), 'offsets' (int64 [1001]), 'labels' (int64 [1000])"
    ),
    "spoken-digits.npz": (
        "the Free Spoken Digit Dataset, from github.com/Jakobovski/free-spoken-digit-dataset, 8 kHz: arrays "
        "'samples' (int16, all clips one after another), 'offsets' (int64 [3001]), 'digits', 'speakers' (int64 [3000])"
    ),
}


def data_file(name: str) -> Path:
    """Path of a data set.

    Raises:
        FileNotFoundError: it is not there; the message says what it holds and where it comes from.
    """
    path = data_folder() / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{name} is not in {path.parent}. It holds {ORIGINS[name]}. "
            "Make it from there, and name its folder in the environment variable ALULA_DATA."
        )
    return path


def data_folder() -> Path:
    """The folder of data sets: the environment variable ALULA_DATA, or else ../shared/data beside the checkout."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("ALULA_DATA") or beside)


def cache_folder(task_file: Path, *packages: str) -> Path:
    """The folder for what an example builds: another one for every change in its files or in these packages.

    It lies under the environment variable ALULA_CACHE, or else ~/.cache/alula.
    """
    root = Path(os.environ.get("ALULA_CACHE") or Path.home() / ".cache" / "alula")
    home = task_file.resolve().parent
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(home.glob("*.py"))))
    digest.update(" ".join(f"{package}=={version(package)}" for package in packages).encode())
    folder = root / f"{home.name}-{digest.hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def package_folder(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed: pip install --no-deps -r examples/requirements.txt")
    return Path(spec.origin).parent

"""A voice detector: silero-vad, a network with state, on spoken digits between pauses."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[2]))  # so that a task file may be opened from anywhere

from alula.graph.load import load_model
from alula.task import Run, Task
from examples.data import data_file, package_folder

FRAME = 512  # samples at 16 kHz: 32 ms, of which the network also wants the 64 before
CONTEXT = 64
PAUSE = 12 * FRAME  # before and after the digit
NOISE = 1e-3  # standard deviation of the noise everywhere, where full scale is 1
CALIBRATION = 64  # clips
THRESHOLD = 0.5  # probability from which a frame counts as speech

Example = tuple[np.ndarray, np.ndarray]  # (sound float32 [frames, FRAME], label of each frame: 1, 0, or -1 for none)


def task() -> Task:
    """The detector, scored by how many frames of speech and of pause it tells right; no speaker is in both sets."""
    rng = np.random.default_rng(0)
    clips, speakers = read_clips()
    order = rng.permutation(len(clips))
    known = [index for index in order if speakers[index] == 0][:CALIBRATION]
    unknown = [index for index in order if speakers[index] != 0]
    return Task(
        parts={"model": load_model(package_folder("silero_vad") / "data" / "silero_vad_openvino_16k.onnx")},
        calibration=[between_pauses(clips[index], rng) for index in known],
        evaluation=[between_pauses(clips[index], rng) for index in unknown],
        scorer=score,
        name="voice",
        metric="balanced frame accuracy",
    )


def score(run: Run, examples: Sequence[Example]) -> np.ndarray:
    """For each clip the mean of two shares: of its speech that is heard, and of its pauses that are not."""
    return np.array([balanced(probabilities(run, sound) >= THRESHOLD, labels) for sound, labels in examples])


def balanced(heard: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the share of speech that was heard and the share of pause that was not."""
    return float(heard[labels == 1].mean() + (~heard[labels == 0]).mean()) / 2


def probabilities(run: Run, sound: np.ndarray) -> np.ndarray:
    """How sure the network is of speech in each frame, [frames]: frame by frame, handing its state on."""
    state, before = np.zeros((2, 1, 128), np.float32), np.zeros(CONTEXT, np.float32)
    found = []
    for frame in sound:
        outputs = run({"input": np.concatenate([before, frame])[None], "state": state})
        state, before = outputs["stateN"], frame[-CONTEXT:]
        found.append(outputs["output"].item())
    return np.array(found)


def between_pauses(clip: np.ndarray, rng: np.random.Generator) -> Example:
    """The clip with a pause before and after, faint noise over all, and what each frame holds.

    A frame outside the clip is pause; a frame inside it is speech when its root mean square is at least a quarter of
    the loudest one's. The rest, where a word swells or fades or the clip begins or ends, has no label.
    """
    frames = -(-len(clip) // FRAME)
    samples = rng.normal(0, NOISE, 2 * PAUSE + frames * FRAME)
    samples[PAUSE : PAUSE + len(clip)] += clip
    sound = samples.astype(np.float32).reshape(-1, FRAME)
    labels = np.zeros(len(sound), np.int64)
    inside = slice(PAUSE // FRAME, PAUSE // FRAME + len(clip) // FRAME)
    energy = np.sqrt((sound[inside] ** 2).mean(1))
    labels[inside] = np.where(energy >= energy.max() / 4, 1, -1)
    labels[inside.stop : PAUSE // FRAME + frames] = -1  # half clip, half pause
    return sound, labels


def read_clips() -> tuple[list[np.ndarray], np.ndarray]:
    """Every clip at 16 kHz, full scale 1, and the number of its speaker."""
    with np.load(data_file("spoken-digits.npz")) as file:
        samples, offsets, speakers = file["samples"] / 32768, file["offsets"], file["speakers"]
    return [at_twice_the_rate(clip) for clip in np.split(samples, offsets[1:-1])], speakers


def at_twice_the_rate(clip: np.ndarray) -> np.ndarray:
    """The same sound in twice as many samples: its spectrum, with nothing above the old limit."""
    return np.fft.irfft(np.fft.rfft(clip), 2 * len(clip)) * 2

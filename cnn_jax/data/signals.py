"""Signals in time, drawn by seed: two to classify as a whole, two to label step by step. `config.data.kind` chooses.

moving_sensor  The distance to an object, as a noisy sensor reads it: is the object still, approaching, leaving, or
               oscillating? The noise hides the step from one reading to the next; what a reader needs is the smoothed
               estimate s_t = sum over a of x_{t-a} w_{-a}, a convolution with weights to be learnt. After I. Goodfellow
               et al., "Deep Learning", MIT Press, 2016, https://www.deeplearningbook.org, section 9.1.
tones          A waveform of three tones, each low or high in pitch: which of the eight patterns? Pitches, phases,
               loudness and the moments of change vary.
copy           Symbols to remember over a delay and to say again, in order, after a cue; so, with other symbols, in
               S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997, and M. Arjovsky et
               al., "Unitary Evolution Recurrent Neural Networks", ICML 2016, https://arxiv.org/abs/1511.06464, section 5.1.
parity         Bits, and at each step whether the ones so far are even or odd in number: the exclusive-or in time of
               J. Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990, carried on without end.

The first two are `image` (num_steps, 1) uint8, as an 8-bit converter gives them, and `label` int32, for the task
"classification"; the other two are `sequence` (steps, symbols) float32, one-hot and 0 beyond `length` int32, and `label`
(steps,) int32, for the task "sequence": -1 where nothing is to be said.

Example i of a split depends on (config.data_seed, split, i) and the other fields but the sizes only, so a larger split
begins with the smaller one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from cnn_jax.data.source import (
    SPLITS,
    ArraySource,
    SourceInfo,
    channel_statistics,
    check_split,
    content_checksum,
    uniform_draws,
)
from cnn_jax.resolve import nearest

MOTIONS = ("still", "approaching", "leaving", "oscillating")
PATTERNS = tuple(f"{a} {b} {c}" for a in ("low", "high") for b in ("low", "high") for c in ("low", "high"))
NUM_TONES = 3
SYMBOLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Arrays = dict[str, np.ndarray]


def make_source(config: ConfigDict, split: str) -> ArraySource:
    """The signals of one split, of `config.kind`.

      config.num_train, config.num_validation, config.num_test, config.data_seed   whole numbers
      moving_sensor, tones
        config.num_steps      samples in a signal
        config.noise          the standard deviation of the noise, as a part of the converter's range
      copy
        config.num_symbols    how many kinds of symbol there are, 2 to 26; two more inputs say "wait" and "now"
        config.copied_steps   how many symbols are to be remembered
        config.delay_steps    (least, most) steps between the last symbol and the first answer; the last says "now"
      parity
        config.length_steps   (least, most) bits

    Raises:
      ValueError: an unknown split or kind, or a value out of range.
    """
    check_split(split)
    if config.kind not in KINDS:
        known = f"{nearest(config.kind, KINDS)}; there are: {', '.join(KINDS)}"
        raise ValueError(f"config.data.kind={config.kind!r} is no kind of signal{known}")
    kind = KINDS[config.kind]
    _check(config, ("num_train", "num_validation", "num_test"), lambda n: n >= 1, "be at least 1")
    _check(config, ("data_seed",), lambda seed: seed >= 0, "not be negative")
    kind.check(config)
    splits = {}
    for stream, name in enumerate(SPLITS):
        num_examples = config[f"num_{name}"]
        draw = uniform_draws(config.data_seed, stream, num_examples, kind.num_draws(config))
        splits[name] = kind.make(config, draw)
    train = splits["train"]
    info = SourceInfo(
        name=f"signals:{config.kind}",
        classes=kind.classes(config),
        image_shape=(train["image"] if "image" in train else train["sequence"]).shape[1:],
        preprocessing=channel_statistics(train["image"]) if "image" in train else {},
        checksum=content_checksum(splits),
    )
    return ArraySource(splits[split], info)


def make_moving_sensor(config: ConfigDict, draw: Float[np.ndarray, "n d"]) -> Arrays:
    """Readings of a distance; example i has motion i mod 4.

    Distances are parts of the sensor's range. The middle of the way lies in 0.35 to 0.65; an object that goes covers 0.2
    to 0.4 at constant speed; one that swings goes 0.1 to 0.2 either way, 1.5 to 5 times.
    """
    n, num_steps = len(draw), config.num_steps
    label = np.arange(n, dtype=np.int32) % len(MOTIONS)
    middle, way, swing, times, phase = (draw[:, [i]] for i in range(5))
    time = (np.arange(num_steps) / max(1, num_steps - 1))[None] - 0.5
    line = (0.2 + 0.2 * way) * time
    wave = (0.1 + 0.1 * swing) * np.sin(2 * np.pi * ((1.5 + 3.5 * times) * time + phase))
    motion = np.choose(label[:, None], [np.zeros_like(line), -line, line, wave])
    return {"image": _sampled(0.35 + 0.3 * middle + motion, draw[:, 5:], config.noise), "label": label}


def make_tones(config: ConfigDict, draw: Float[np.ndarray, "n d"]) -> Arrays:
    """Three tones, one after another; example i has pattern i mod 8, a bit a tone, the first tone's the highest.

    A low tone has a period of 12 to 18 samples, a high one of 5 to 7.5; the amplitude is 0.15 to 0.35 of the range; the
    tones change at a third and two thirds of the time, each up to a twelfth earlier or later.
    """
    n, num_steps = len(draw), config.num_steps
    label = np.arange(n, dtype=np.int32) % len(PATTERNS)
    step = np.arange(num_steps)[None]
    change = num_steps * (np.arange(1, NUM_TONES) / NUM_TONES + (2 * draw[:, :2] - 1) / 12)
    tone = (step[:, None] >= change[:, :, None]).sum(1)  # which of the three sounds at each step
    is_high = (label[:, None] >> (NUM_TONES - 1 - tone)) & 1
    period = np.where(is_high, 5 + 2.5 * draw[:, [2]], 12 + 6 * draw[:, [3]])
    phase = np.take_along_axis(draw[:, 4 : 4 + NUM_TONES], tone, axis=1)
    wave = (0.15 + 0.2 * draw[:, [7]]) * np.sin(2 * np.pi * (step / period + phase))
    return {"image": _sampled(0.5 + wave, draw[:, 8:], config.noise), "label": label}


def make_copy(config: ConfigDict, draw: Float[np.ndarray, "n d"]) -> Arrays:
    """Symbols, then the delay, whose last step says "now", then as many steps without input in which to answer."""
    n, copied, num_symbols = len(draw), config.copied_steps, config.num_symbols
    delay = _whole(draw[:, 0], config.delay_steps)
    symbol = np.floor(draw[:, 1:] * num_symbols).astype(np.int32)
    step = np.arange(2 * copied + config.delay_steps[1])[None]
    length = 2 * copied + delay
    wait, now = num_symbols, num_symbols + 1
    given = np.where(step < copied + delay[:, None], wait, -1)  # -1: no input
    given[:, :copied] = symbol
    given[np.arange(n), copied + delay - 1] = now
    answer = step - (copied + delay)[:, None]  # which of the symbols is to be said
    asked = (answer >= 0) & (answer < copied)
    label = np.where(asked, np.take_along_axis(symbol, np.clip(answer, 0, copied - 1), axis=1), -1)
    return {"sequence": _one_hot(given, num_symbols + 2), "length": length, "label": label.astype(np.int32)}


def make_parity(config: ConfigDict, draw: Float[np.ndarray, "n d"]) -> Arrays:
    """Random bits, and at each step 1 if the ones so far are odd in number."""
    length = _whole(draw[:, 0], config.length_steps)
    inside = np.arange(config.length_steps[1])[None] < length[:, None]
    bit = np.where(inside, (draw[:, 1:] < 0.5).astype(np.int32), -1)
    label = np.where(inside, np.cumsum(bit, axis=1) % 2, -1)
    return {"sequence": _one_hot(bit, 2), "length": length, "label": label.astype(np.int32)}


def _sampled(
    signal: Float[np.ndarray, "n steps"], draw: Float[np.ndarray, "n steps"], noise: float
) -> UInt8[np.ndarray, "n steps 1"]:
    """A signal of 0 to 1 with normal noise, in bytes."""
    from scipy.special import ndtri

    noisy = signal + noise * ndtri(draw + 2.0**-54)  # a draw of 0 would lie at minus infinity
    # Rounded from just short of a half, where the last bit of a sine would decide.
    return np.floor(np.clip(noisy, 0, 1) * 255 + 0.500001).astype(np.uint8)[..., None]


def _whole(draw: Float[np.ndarray, " n"], bounds: tuple[int, int]) -> np.ndarray:
    """Whole numbers of least to most, each as likely."""
    return (bounds[0] + np.floor(draw * (bounds[1] - bounds[0] + 1))).astype(np.int32)


def _one_hot(symbol: np.ndarray, num_symbols: int) -> Float[np.ndarray, "n steps symbols"]:
    """A symbol's vector at each step; zeros for -1."""
    return (symbol[..., None] == np.arange(num_symbols)).astype(np.float32)


def _check(config: ConfigDict, keys: tuple[str, ...], good: Callable, must: str) -> None:
    for key in keys:
        if not good(config[key]):
            raise ValueError(f"config.data.{key}={config[key]}: must {must}")


def _check_waveform(config: ConfigDict) -> None:
    _check(config, ("num_steps",), lambda steps: steps >= 2, "be at least 2")
    _check(config, ("noise",), lambda noise: noise >= 0, "not be negative")


def _check_copy(config: ConfigDict) -> None:
    _check(config, ("num_symbols",), lambda symbols: 2 <= symbols <= len(SYMBOLS), "lie in 2..26")
    _check(config, ("copied_steps",), lambda steps: steps >= 1, "be at least 1")
    _check(config, ("delay_steps",), _is_range, "be (least, most) with 1 <= least <= most")


def _check_parity(config: ConfigDict) -> None:
    _check(config, ("length_steps",), _is_range, "be (least, most) with 1 <= least <= most")


def _is_range(bounds: tuple[int, ...]) -> bool:
    return len(bounds) == 2 and 1 <= bounds[0] <= bounds[1]


@dataclass(frozen=True)
class Kind:
    """What there is to know of a kind of signal."""

    check: Callable[[ConfigDict], None]
    num_draws: Callable[[ConfigDict], int]  # for one example
    make: Callable[[ConfigDict, np.ndarray], Arrays]
    classes: Callable[[ConfigDict], tuple[str, ...]]


KINDS = {
    "moving_sensor": Kind(_check_waveform, lambda c: 5 + c.num_steps, make_moving_sensor, lambda c: MOTIONS),
    "tones": Kind(_check_waveform, lambda c: 8 + c.num_steps, make_tones, lambda c: PATTERNS),
    "copy": Kind(_check_copy, lambda c: 1 + c.copied_steps, make_copy, lambda c: tuple(SYMBOLS[: c.num_symbols])),
    "parity": Kind(_check_parity, lambda c: 1 + c.length_steps[1], make_parity, lambda c: ("even", "odd")),
}

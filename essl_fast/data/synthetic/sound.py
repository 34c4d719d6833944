"""The sounds of the demo world: one recipe per class, each with its own timbre and rhythm, varied from clip to clip.

A recipe takes (rng, n, rate) and returns n mono float32 samples of any level. `clip` scales them, adds faint pink noise
and, for stereo, a pan. Pitch, tempo, brightness, phase and level all vary with the random generator, so no two clips of
a class are equal, but the classes differ in their mean spectrum and in their modulation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TABLE = 4096  # samples of one period in a wavetable; a look-up costs a fifth of a sum of sines

Recipe = Callable[[np.random.Generator, int, int], np.ndarray]


def _phase(frequency: np.ndarray | float, n: int, rate: int, start: float) -> np.ndarray:
    """Phase in periods, float64 (n,), of a tone with a constant frequency, or with one for every sample, in Hz."""
    if np.ndim(frequency) == 0:
        return start + np.arange(n) * (float(frequency) / rate)
    return start + np.cumsum(frequency) / rate


def _wavetable(amplitudes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One period, float32 (TABLE,), of harmonics 1, 2, ... with these amplitudes and random phases."""
    spectrum = np.zeros(TABLE // 2 + 1, np.complex128)
    spectrum[1 : len(amplitudes) + 1] = amplitudes * np.exp(2j * np.pi * rng.random(len(amplitudes)))
    table = np.fft.irfft(spectrum)
    return (table / np.abs(table).max()).astype(np.float32)


def _play(table: np.ndarray, phase: np.ndarray) -> np.ndarray:
    return table[(phase * TABLE).astype(np.int64) & (TABLE - 1)]


def _sine(phase: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * phase).astype(np.float32)


def _add(out: np.ndarray, snippet: np.ndarray, at: int, gain: float) -> None:
    """Add `snippet` to `out` from sample `at` on, which may be negative; what is outside of `out` is dropped."""
    first, last = max(at, 0), min(at + len(snippet), len(out))
    if last > first:
        out[first:last] += np.float32(gain) * snippet[first - at : last - at]


def _beats(rng: np.random.Generator, n: int, rate: int, per_second: float, jitter: float) -> list[int]:
    """Positions of beats in samples, from half a beat before the clip on, each moved by up to `jitter` beats."""
    step = rate / per_second
    count = int(n / step) + 2
    return [int((i - rng.random() * 0.5 + jitter * rng.uniform(-1, 1)) * step) for i in range(count)]


def _noise_band(rng: np.random.Generator, n: int, rate: int, low: float, high: float, tilt: float = 0.0) -> np.ndarray:
    """Noise, float32 (n,), between `low` and `high` Hz with soft edges; power falls by `tilt` * 6 dB per octave."""
    spectrum = np.fft.rfft(rng.standard_normal(n, dtype=np.float32))
    hertz = np.maximum(np.fft.rfftfreq(n, 1 / rate), 1.0)
    gain = 1 / (1 + (low / hertz) ** 4) / (1 + (hertz / high) ** 4) / hertz**tilt
    return np.fft.irfft(spectrum * gain, n).astype(np.float32)


def _bell(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Strikes of inharmonic partials that ring on, about two a second."""
    m = int(0.9 * rate)
    t = np.arange(m) / rate
    base, decay = 620 * rng.uniform(0.88, 1.14), rng.uniform(3.5, 6.0)
    strike = np.zeros(m, np.float32)
    for ratio, amplitude in ((0.5, 0.35), (1.0, 1.0), (1.19, 0.6), (1.56, 0.5), (2.0, 0.7), (2.66, 0.45), (3.76, 0.3)):
        partial = _sine(_phase(base * ratio, m, rate, rng.random()))
        strike += (amplitude * rng.uniform(0.8, 1.2) * np.exp(-decay * ratio**0.7 * t)).astype(np.float32) * partial
    out = np.zeros(n, np.float32)
    for at in _beats(rng, n, rate, rng.uniform(1.7, 2.6), 0.04):
        _add(out, strike, at, rng.uniform(0.8, 1.0))
    return out


def _bird(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Phrases of short, fast sweeps between 3 and 6 kHz."""
    pitch, tempo = rng.uniform(0.88, 1.14), rng.uniform(5.5, 8.0)
    chirps = []
    for start, end in ((3300, 5200), (4900, 3700), (4300, 4300)):
        m = int(rng.uniform(0.07, 0.11) * rate)
        sweep = np.linspace(start, end, m) * pitch
        chirps.append(_sine(_phase(sweep, m, rate, rng.random())) * np.hanning(m).astype(np.float32))
    out = np.zeros(n, np.float32)
    phrase, rest = int(rng.integers(3, 6)), int(rng.integers(0, 6))
    for i, at in enumerate(_beats(rng, n, rate, tempo, 0.05)):
        if (i + rest) % (phrase + 1) < phrase:
            _add(out, chirps[(i + rest) % 3], at, rng.uniform(0.7, 1.0))
    return out


def _car(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """A low buzz whose speed drifts, beating once every second turn."""
    base = 72 * rng.uniform(0.85, 1.18)
    t = np.arange(n) / rate
    speed = base * (1 + 0.06 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.5) * t + rng.random())))
    phase = _phase(speed, n, rate, rng.random())
    k = np.arange(1, 26)
    amplitudes = k**-0.7 / (1 + (k * base / rng.uniform(500, 800)) ** 2)
    beat = 1 + 0.45 * _sine(phase * 0.25)
    return _play(_wavetable(amplitudes, rng), phase) * beat


def _drum(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Hits: a falling low tone and a burst of noise, loud and soft in a fixed pattern."""
    m = int(0.25 * rate)
    t = np.arange(m) / rate
    pitch = rng.uniform(0.85, 1.18)
    tone = _sine(_phase(pitch * (95 + 130 * np.exp(-28 * t)), m, rate, 0.0)) * np.exp(-15 * t).astype(np.float32)
    burst = _noise_band(rng, m, rate, 250, 2200 * pitch, 0.3)
    burst *= (np.exp(-38 * t) * rng.uniform(0.5, 0.8) / np.abs(burst).max()).astype(np.float32)
    hit = tone + burst
    accents = (1.0, 0.45, 0.7, 0.45) if rng.random() < 0.5 else (1.0, 0.6, 0.35)
    out = np.zeros(n, np.float32)
    for i, at in enumerate(_beats(rng, n, rate, rng.uniform(3.6, 5.2), 0.03)):
        _add(out, hit, at, accents[i % len(accents)])
    return out


def _fountain(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """A rush of wide-band noise that swells and gurgles."""
    pitch = rng.uniform(0.88, 1.14)
    t = np.arange(n) / rate
    swell = 1 + 0.3 * np.sin(2 * np.pi * (rng.uniform(0.6, 1.4) * t + rng.random()))
    gurgle = 1 + 0.3 * np.sin(2 * np.pi * (rng.uniform(6, 10) * t + 0.4 * np.sin(2 * np.pi * 1.7 * t) + rng.random()))
    return _noise_band(rng, n, rate, 1300 * pitch, 6000 * pitch, 0.2) * (swell * gurgle).astype(np.float32)


def _phone(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Rings: two tones that take turns about twenty times a second, then a pause."""
    low = 1850 * rng.uniform(0.9, 1.1)
    t = np.arange(n) / rate
    turn = np.floor(2 * rng.uniform(9, 12) * t + rng.random()).astype(np.int64) & 1
    phase = _phase(np.where(turn == 0, low, low * 1.26), n, rate, rng.random())
    period, share = rng.uniform(0.7, 1.0), rng.uniform(0.6, 0.72)
    on = np.clip(40 * (share / 2 - np.abs((t / period + rng.random()) % 1 - 0.5)), 0, 1)
    return (_sine(phase) + 0.25 * _sine(2 * phase)) * on.astype(np.float32)


def _siren(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """A tone with odd harmonics that wails up and down."""
    t = np.arange(n) / rate
    wail = 0.5 - 0.5 * np.cos(2 * np.pi * (rng.uniform(0.5, 0.95) * t + rng.random()))
    phase = _phase(rng.uniform(0.9, 1.12) * (650 + 750 * wail), n, rate, rng.random())
    return _play(_wavetable(np.array([1, 0, 0.4, 0, 0.2, 0, 0.1]), rng), phase)


def _singer(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    """Syllables of vowels: a voice's harmonics shaped by two or three resonances, with vibrato."""
    t = np.arange(n) / rate
    base = rng.uniform(150, 230)
    glide = (
        1 + 0.02 * np.sin(2 * np.pi * (5.5 * t + rng.random())) + 0.08 * np.sin(2 * np.pi * (0.7 * t + rng.random()))
    )
    phase = _phase(base * glide, n, rate, rng.random())
    harmonics = np.arange(1, 24) * base
    tract, out, tempo = rng.uniform(0.93, 1.08), np.zeros(n, np.float32), rng.uniform(2.6, 3.8)
    vowels = [
        _play(
            _wavetable(np.asarray(sum(a / (1 + ((harmonics - f * tract) / 90) ** 2) for f, a in formants)) + 0.01, rng),
            phase,
        )
        for formants in (
            ((730, 1.0), (1090, 0.6), (2440, 0.2)),
            ((300, 1.0), (870, 0.4), (2240, 0.1)),
            ((530, 1.0), (1840, 0.5), (2480, 0.3)),
        )
    ]
    m = int(rate / tempo * 0.85)
    shape = np.hanning(m).astype(np.float32) ** 0.6
    for at in _beats(rng, n, rate, tempo, 0.06):
        first, last = max(at, 0), min(at + m, n)
        if last > first:
            out[first:last] += vowels[int(rng.integers(3))][first:last] * shape[first - at : last - at]
    return out


RECIPES: dict[str, Recipe] = {
    "bell": _bell,
    "bird": _bird,
    "car": _car,
    "drum": _drum,
    "fountain": _fountain,
    "phone": _phone,
    "siren": _siren,
    "singer": _singer,
}


def clip(kind: str, rng: np.random.Generator, seconds: float, rate: int, channels: int) -> np.ndarray:
    """Sound of one scene: class `kind` over faint pink noise, 20 to 28 dB below it.

    Returns (channels, round(seconds * rate)) float32 in (-1, 1). Raises KeyError for an unknown class.
    """
    n = round(seconds * rate)
    sound = RECIPES[kind](rng, n, rate)
    sound *= np.float32(0.14 * 10 ** (rng.uniform(-4, 2) / 20) / np.sqrt(np.mean(sound**2)))
    noise = _noise_band(rng, n, rate, 40, 9000, 0.5)
    level = np.sqrt(np.mean(sound**2)) * 10 ** (-rng.uniform(20, 28) / 20)
    noise *= np.float32(level / np.sqrt(np.mean(noise**2)))
    sound = np.tanh(sound + noise)  # tanh: short peaks pass, none clips
    if channels == 1:
        return sound[None]
    pan = rng.uniform(0.7, 1.0, 2)  # does not tell where the object is, unlike in reality: the class must tell
    return np.stack([sound * np.float32(gain) for gain in pan])

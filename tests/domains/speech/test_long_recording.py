"""Long recordings: nothing lost, no seam, no swap, flat memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from conversations import RATE, Swapping, digits, turns

from domains.speech.long_recording import (
    Chunking,
    LongSeparation,
    OverlapAdd,
    best_gains,
    separate,
)
from domains.speech.resampling import StreamResampler
from domains.speech.tracker import SURE, SpeakerTracker

WINDOW, HOP = 4 * RATE, 2 * RATE


def pieces(samples, seed):
    """Cut samples (..., L) into blocks of odd lengths."""
    rng = np.random.default_rng(seed)
    while samples.shape[-1]:
        count = int(rng.integers(1, 4000))
        yield samples[..., :count]
        samples = samples[..., count:]


@pytest.mark.parametrize("rates", [(44100, 8000), (8000, 44100), (11025, 8000), (8000, 8000)])
def test_a_stream_is_resampled_as_the_whole(rates):
    samples = torch.randn(2, 30001)
    stream = StreamResampler(*rates)
    found = torch.cat([*(stream.push(block) for block in pieces(samples, 0)), stream.finish()], 1)
    whole = torchaudio.transforms.Resample(*rates)(samples)
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)


class Shares(nn.Module):
    """The true shares of the mixture, each chunk at a level and a sign of its own."""

    def forward(self, mixture):
        level = float(mixture.abs().sum() * 1e4) % 1 + 0.5
        return torch.stack([0.7 * mixture, 0.3 * mixture], 1) * (level if level > 1 else -level)


@settings(deadline=None, max_examples=20)
@given(
    length=st.integers(1, 2000),
    window=st.integers(2, 400),
    hop=st.floats(0.05, 0.99),
    rate=st.sampled_from([1000, 2000, 750]),
)
def test_every_sample_comes_out_once(length, window, hop, rate):
    chunking = Chunking(window / 1000, max(1, int(window * hop)) / 1000)
    mixture = torch.randn(length)
    separation = LongSeparation(Shares(), 2, 1000, rate, chunking)
    found = torch.cat(list(separate(pieces(mixture, length), separation)), 1)
    assert found.shape == (3, length)
    torch.testing.assert_close(found[2], mixture)
    torch.testing.assert_close(found[:2].sum(0), mixture, atol=1e-5, rtol=1e-5)


def test_levels_and_signs_are_those_that_sum_to_the_mixture():
    sources = torch.randn(3, 1000)
    mixture = sources.sum(0)
    gains = best_gains(sources * torch.tensor([[2.0], [-0.5], [1.0]]), mixture)
    torch.testing.assert_close(gains, torch.tensor([0.5, -2.0, 1.0]), atol=0.1, rtol=0.1)
    assert best_gains(torch.zeros(2, 10), mixture[:10]).tolist() == [1, 1]


def separated(sources, seed, leak=0.1, noise=0.0):
    """Separate by a network that swaps; give estimates, mixture, tracker, network and joins."""
    mixture = sources.sum(0) + 1e-4 * torch.randn(
        sources.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    network = Swapping(sources, WINDOW, HOP, seed, leak, noise)
    separation = LongSeparation(network, len(sources), RATE, RATE, Chunking())
    joins = []
    chosen = separation.tracker.order

    def order(*arguments):
        joins.append(chosen(*arguments))
        return joins[-1]

    separation.tracker.order = order
    blocks = list(separate(mixture.split(RATE), separation))
    return torch.cat(blocks, 1), separation.tracker, network, joins


def speaking(sources):
    """Say in which frames of 20 ms each talker speaks, (C, T)."""
    frames = sources[:, : sources.shape[1] // 160 * 160].unflatten(1, (-1, 160))
    power = frames.square().mean(-1)
    return power > 1e-3 * power.mean(1).max()


def wrong_joins(sources, network, joins):
    """List the joins at which the talkers change places: start, seconds of speech in the overlap.

    Where nobody speaks in a chunk, its order does not matter.
    """
    speaks = speaking(sources).any(0)
    kept, found, end = None, [], 0
    for start, order, join in zip(network.starts, network.orders, joins, strict=True):
        place = [order[estimate] for estimate in join]
        overlap = float(speaks[start // 160 : end // 160].sum()) * 0.02
        end = start + WINDOW
        if speaks[start // 160 : end // 160].sum() * 0.02 > 0.1:
            if kept not in (None, place):
                found.append((start, overlap))
            kept = place
    return found


@pytest.mark.data
@pytest.mark.parametrize(
    ("talkers", "minutes", "leak", "noise"),
    [
        (("jackson", "nicolas"), 4, 0.1, 0.0),
        pytest.param(("jackson", "nicolas"), 40, 0.0, 0.0, marks=pytest.mark.slow),
        pytest.param(("george", "lucas"), 40, 0.3, 0.0, marks=pytest.mark.slow),
        pytest.param(("theo", "yweweler"), 40, 0.1, 3e-4, marks=pytest.mark.slow),
    ],
)
def test_a_conversation_has_no_wrong_join(real_data, talkers, minutes, leak, noise):
    voices = [digits(real_data, talker) for talker in talkers]
    sources = turns(voices, 60 * minutes, minutes, longest_pause=8.0)
    found, tracker, network, joins = separated(sources, minutes, leak, noise)
    assert len(joins) == 30 * minutes - 1
    assert len(set(map(tuple, network.orders))) == 2
    wrong = wrong_joins(sources, network, joins)
    assert not [start for start, overlap in wrong if overlap >= SURE]
    doubtful = {round(doubt.seconds * RATE) for doubt in tracker.doubts}
    assert len(doubtful) < len(joins) / 10
    assert {start for start, _ in wrong} <= doubtful
    assert found.shape[1] == sources.shape[1]


@pytest.mark.data
def test_a_minute_has_no_swap_no_seam_and_its_tail(real_data):
    voices = [digits(real_data, talker) for talker in ("jackson", "nicolas")]
    sources = turns(voices, 61.3, 5)
    found, _, network, joins = separated(sources, 5, leak=0.02)
    assert wrong_joins(sources, network, joins) == []
    scores = found[:2] @ sources.T
    estimates = found[:2] if scores.trace() > scores.flip(0).trace() else found[:2].flip(0)
    for second in range(61):
        part = slice(second * RATE, (second + 1) * RATE)
        heard = sources[:, part].square().mean(1) > 1e-5
        unit = torch.nn.functional.normalize(sources[:, part])
        match = estimates[:, part] @ unit.T  # (estimates, talkers)
        assert bool((match.diag() > match.fliplr().diag())[heard].all())
    torch.testing.assert_close(found[:2].sum(0), found[2], atol=1e-6, rtol=0)
    assert float((estimates - sources)[:, -2000:].norm() / sources[:, -2000:].norm()) < 0.3


def test_no_jump_at_the_borders_of_chunks():
    """A network that is off by another amount in each chunk leaves no step above -60 dB."""
    sources = 0.3 * torch.sin(torch.arange(40 * RATE) * torch.tensor([[0.05], [0.08]]))

    class Off(nn.Module):
        number = 0

        def forward(self, mixture):
            start = min(self.number * HOP, sources.shape[1] - WINDOW)
            self.number += 1
            scale = mixture.square().mean().sqrt() / sources.sum(0)[:WINDOW].square().mean().sqrt()
            off = torch.tensor([[0.1], [-0.1]]) * (-1) ** self.number
            return ((sources[:, start : start + WINDOW] + off) * scale)[None]

    chunks = OverlapAdd(Off(), SpeakerTracker(2, RATE), WINDOW, HOP, fit=False)
    mixture = sources.sum(0)
    found = torch.cat([*(chunks.push(b) for b in mixture.split(RATE)), chunks.finish()], 1)
    error = found[:2] - sources
    assert float(error.abs().max()) > 0.09
    assert float(error.diff(dim=1).abs().max()) < 1e-3


CHILD = """
import resource, sys
from pathlib import Path
import torch
from torch import nn
from domains.speech.preprocessing import SeparationFiles

class Halves(nn.Module):
    def forward(self, mixture):
        return torch.stack([0.6 * mixture, 0.4 * mixture], 1)

SeparationFiles(8000, 2).predict_file(Halves(), Path(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_is_flat_in_the_length_of_the_recording(tmp_path):
    peaks = []
    for minutes in (1, 10):
        path = tmp_path / f"{minutes}.wav"
        samples = np.random.default_rng(0).normal(0, 0.1, minutes * 60 * 16000)
        soundfile.write(path, samples, 16000)
        told = subprocess.run(
            [sys.executable, "-c", CHILD, path, tmp_path / f"out{minutes}"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        peaks.append(int(told.stdout) / 1024)
        assert soundfile.info(tmp_path / f"out{minutes}/s2.wav").frames == len(samples)
    assert peaks[1] - peaks[0] < 15, peaks  # MiB; ten minutes of float32 are 37, of doubles 73


@pytest.mark.data
def test_silence_between_turns_is_listed_as_doubtful(real_data):
    first, second = (digits(real_data, talker)[0] for talker in ("jackson", "nicolas"))
    sources = torch.zeros(2, 20 * RATE)
    sources[0, : len(first)] = first
    sources[1, 12 * RATE : 12 * RATE + len(second)] = second
    _, tracker, _, _ = separated(sources, 0)
    assert [doubt.seconds for doubt in tracker.doubts] == [10.0]
    assert tracker.doubts[0].speech == 0

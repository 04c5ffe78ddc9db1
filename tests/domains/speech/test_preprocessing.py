"""Recordings of the user's: one WAV a talker, whatever the recording; wrong ones are told."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from core.errors import UserError
from core.pretrained import save_pretrained
from domains.speech.long_recording import Chunking
from domains.speech.networks.conv_tasnet import ConvTasNet
from domains.speech.preprocessing import SeparationFiles
from domains.speech.spectrograms import Spectrograms
from pleiad import command


class Halves(nn.Module):
    """Two estimates: 30 and 20 % of the mixture."""

    def forward(self, mixture):
        return torch.stack([0.3 * mixture, 0.2 * mixture], 1)


@pytest.fixture(autouse=True)
def _undrawn(request, monkeypatch):
    """Draw pictures in the test that looks for one alone."""
    if request.node.name != "test_the_command_fills_a_folder":
        monkeypatch.setattr(Spectrograms, "draw", lambda self, path: None)


FILES = SeparationFiles(8000, 2, Chunking(1.0, 0.5))


def noise(length, channels=1, seed=0):
    values = np.random.default_rng(seed).normal(0, 0.1, (length, channels)).astype(np.float32)
    return np.cumsum(values, 0).astype(np.float32) * 0.01 + values


def answer(path, tmp_path, files=FILES, network=None, **options):
    output = tmp_path / "out"
    told = files.predict_file(network or Halves(), path, output, **options)
    read = [soundfile.read(output / f"s{n}.wav", dtype="float32") for n in (1, 2)]
    return told, torch.from_numpy(np.stack([samples for samples, _ in read])), output


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 4000, 11025])
@pytest.mark.parametrize("length", [1, 159, 20000, 44101])
def test_rate_and_length_are_kept_and_estimates_sum_to_the_mixture(tmp_path, rate, length):
    mixture = noise(length)
    soundfile.write(tmp_path / "x.wav", mixture, rate, "FLOAT")
    told, found, _ = answer(tmp_path / "x.wav", tmp_path)
    assert found.shape == (2, length)
    torch.testing.assert_close(found.sum(0), torch.from_numpy(mixture[:, 0]), atol=2e-6, rtol=0)
    assert ("shared by the estimates' ratios" in told) == (rate > 8000)
    assert "real-time factor" in told
    info = soundfile.info(tmp_path / "out/s1.wav")
    assert (info.samplerate, info.subtype, info.channels) == (rate, "FLOAT", 1)


def test_the_high_band_is_shared_by_ratio_or_dropped(tmp_path):
    rate, t = 44100, np.arange(44100 * 2) / 44100
    high = 0.2 * np.sin(2 * np.pi * 9000 * t)
    soundfile.write(tmp_path / "x.wav", 0.2 * np.sin(2 * np.pi * 500 * t) + high, rate, "FLOAT")
    network = nn.Module()
    network.forward = lambda mixture: torch.stack([0.9 * mixture, -0.3 * mixture], 1)
    _, found, _ = answer(tmp_path / "x.wav", tmp_path, network=network)
    spectrum = torch.fft.rfft(found[:, rate // 2 : rate // 2 + rate]).abs() / rate * 2
    torch.testing.assert_close(spectrum[:, 9000], torch.tensor([0.18, 0.02]), atol=2e-3, rtol=0)
    told, found, _ = answer(tmp_path / "x.wav", tmp_path, high_band="drop")
    spectrum = torch.fft.rfft(found[:, rate // 2 : rate // 2 + rate]).abs() / rate * 2
    assert float(spectrum[:, 9000].max()) < 1e-4
    assert "dropped what lies above 4,000 Hz" in told


def test_scales(tmp_path):
    mixture = torch.from_numpy(noise(30000)[:, 0])
    soundfile.write(tmp_path / "x.wav", mixture.numpy(), 8000, "FLOAT")
    _, found, _ = answer(tmp_path / "x.wav", tmp_path, scale="none")
    torch.testing.assert_close(found, torch.stack([0.3 * mixture, 0.2 * mixture]))
    _, found, _ = answer(tmp_path / "x.wav", tmp_path, scale="peak")
    torch.testing.assert_close(found.abs().amax(1), torch.ones(2))
    torch.testing.assert_close(found[0], mixture / mixture.abs().max(), atol=1e-5, rtol=1e-5)
    for wrong in ({"scale": "loud"}, {"high_band": "keep"}, {"hop": "two"}, {"hop": "9"}):
        with pytest.raises(UserError, match=r"|".join(wrong)):
            answer(tmp_path / "x.wav", tmp_path, **wrong)


def tiny():
    torch.manual_seed(0)
    return ConvTasNet(features=16, width=8, inner=16, depth=2, stacks=1)


def test_a_quiet_recording_is_separated_as_a_loud_one():
    net = tiny()
    mixture = torch.from_numpy(noise(20000)[:, 0])
    loud = FILES.separate(net, mixture, 8000)
    quiet = FILES.separate(net, mixture * 1e-4, 8000)
    torch.testing.assert_close(quiet * 1e4, loud, atol=1e-5, rtol=1e-4)


def test_what_is_odd_is_repaired_and_told(tmp_path):
    path = tmp_path / "größer name.wav"
    stereo = noise(20000, 2)
    soundfile.write(path, stereo, 8000, "PCM_24")
    told, found, output = answer(path, tmp_path)
    assert "folded into their mean" in told
    assert soundfile.info(output / "s1.wav").subtype == "PCM_24"
    torch.testing.assert_close(found.sum(0), torch.from_numpy(stereo.mean(1)), atol=1e-5, rtol=0)
    stereo[100:200] = np.nan
    soundfile.write(path, stereo, 8000, "FLOAT")
    told, found, _ = answer(path, tmp_path)
    assert "no numbers became zeros" in told
    assert bool(found.isfinite().all())
    soundfile.write(path, np.zeros(20000), 8000)
    told, found, _ = answer(path, tmp_path)
    assert "silent throughout, and so are the estimates" in told
    assert not found.any()
    soundfile.write(path, np.clip(3 * noise(20000), -1, 1), 8000)
    told, _, _ = answer(path, tmp_path, network=Tripled(), scale="none")
    assert "beyond full scale were clipped (--scale=peak avoids it)" in told


class Tripled(Halves):
    def forward(self, mixture):
        return 10 * super().forward(mixture)


class Broken(Halves):
    def forward(self, mixture):
        return super().forward(mixture) * torch.nan


def test_wrong_recordings_and_models_are_told(tmp_path):
    for name, content, says in (
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"not a recording", "is no WAV recording"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=says):
            answer(tmp_path / name, tmp_path)
    soundfile.write(tmp_path / "x.wav", noise(20000), 8000)
    with pytest.raises(UserError, match="not finite"):
        answer(tmp_path / "x.wav", tmp_path, network=Broken())
    with pytest.raises(UserError, match="its preprocessing states 3 talkers"):
        answer(tmp_path / "x.wav", tmp_path, files=SeparationFiles(8000, 3))
    soundfile.write(tmp_path / "x.wav", noise(2000), 44101)
    with pytest.raises(UserError, match="greatest common divisor"):
        answer(tmp_path / "x.wav", tmp_path)


def test_it_travels_as_json():
    assert SeparationFiles.from_json(FILES.to_json()) == FILES
    for wrong in ({}, {**FILES.to_json(), "rate": 0}, {**FILES.to_json(), "chunking": {"a": 1}}):
        with pytest.raises(UserError, match=r"preprocessing\.json"):
            SeparationFiles.from_json(wrong)


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_pretrained(tiny(), Path("model"), preprocessing=FILES)
    return Path("model")


def test_the_command_fills_a_folder(model, capsys):
    soundfile.write("a meeting.wav", noise(30000), 16000)
    for _ in range(2):  # a second time in the place of the first, beside what else is there
        assert (
            command.run(["predict", "model", "--input", "a meeting.wav", "--output", "out/"]) == 0
        )
        names = sorted(path.name for path in Path("out").iterdir() if path.name != "notes.txt")
        assert names == ["doubtful_joins.csv", "s1.wav", "s2.wav", "spectrograms.png"]
        Path("out/notes.txt").write_text("mine")
    assert Path("out/notes.txt").read_text() == "mine"
    assert "out: s1.wav, s2.wav, 1.9 s at 16,000 Hz" in capsys.readouterr().out
    assert not list(Path().glob(".part*"))
    Path("file").write_text("")
    for output, says in (("file", "is a file"), ("none/out", "no folder none")):
        with pytest.raises(UserError, match=says):
            command.run(["predict", "model", "--input", "a meeting.wav", "--output", output])


def test_many_recordings_have_a_folder_each(model, capsys):
    Path("in").mkdir()
    for number in range(3):
        soundfile.write(f"in/{number}.wav", noise(9000, seed=number), 8000)
    Path("in/1.wav").write_text("text")
    assert command.run(["predict", "model", "--input", "in", "--output", "out"]) == 2
    said = capsys.readouterr()
    assert "1.wav: is no WAV recording" in said.err
    assert "2 written, 1 failed; real-time factor" in said.out
    soundfile.write("in/1.wav", noise(9000, seed=1), 8000)
    Path("out/.part.1").mkdir()  # of a process that was killed
    Path("out/.part.1/s1.wav").write_text("half")
    assert command.run(["predict", "model", "--input", "in", "--output", "out"]) == 0
    assert "1 written, 2 there already" in capsys.readouterr().out
    assert sorted(p.name for p in Path("out").iterdir() if p.is_dir()) == ["0", "1", "2"]
    assert all(len(list(Path("out", name).glob("s?.wav"))) == 2 for name in "012")
    with Path("out/manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["output"] for row in rows) == ["0/", "1/", "2/"]
    assert {row["status"] for row in rows} == {"done"}

"""Recordings in any form are read as one channel; what cannot be is told with the fix."""

import numpy as np
import pytest
import soundfile
import torch

from core.errors import UserError
from domains.speech import audio

RATE = 8000


def tone(seconds=0.5, rate=RATE, amplitude=0.5, frequency=440.0):
    time = np.arange(int(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        *(("a.wav", kind, 2e-2) for kind in ("PCM_U8", "ULAW")),
        *(("a.wav", kind, 1e-4) for kind in ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
        *(("a.flac", kind, 1e-4) for kind in ("PCM_16", "PCM_24")),
        *(("a.ogg", "VORBIS", 5e-2), ("a.mp3", "MPEG_LAYER_III", 5e-2)),
    ],
)
def test_every_form_and_depth(tmp_path, name, subtype, tolerance):
    path = tmp_path / name
    soundfile.write(path, tone(), RATE, subtype)
    found = audio.read(path)
    assert found.rate == RATE
    assert found.notes == ()
    middle = slice(1000, 3000)  # lossy forms smear the ends
    assert abs(found.samples.numpy()[middle] - tone()[middle]).max() < tolerance
    assert audio.info(path) == (RATE, len(found.samples), 1, subtype)


def test_a_space_and_unicode_in_a_path(tmp_path):
    path = tmp_path / "späte Réunion 会議.wav"
    audio.write(path, torch.from_numpy(tone()), RATE)
    assert abs(audio.read(path).samples.numpy() - tone()).max() < 1e-4


def test_channels_are_folded_with_a_note(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([tone(), 0 * tone()], 1), RATE)
    found = audio.read(path)
    assert found.notes == (audio.FOLDED,)
    assert abs(found.samples.numpy() - tone() / 2).max() < 1e-4


def test_another_rate_is_resampled_with_a_note(tmp_path):
    path = tmp_path / "high.wav"
    soundfile.write(path, tone(rate=44100), 44100)
    found = audio.read(path, RATE)
    assert found.rate == RATE
    assert found.notes == ("resampled from 44,100 to 8,000 Hz",)
    assert len(found.samples) == len(tone())
    assert abs(found.samples.numpy() - tone())[100:-100].max() < 5e-3


def test_numbers_that_are_none_clipping_and_silence_are_told(tmp_path):
    path = tmp_path / "odd.wav"
    values = tone()
    values[10:20] = np.nan
    values[30] = np.inf
    soundfile.write(path, values, RATE, "FLOAT")
    found = audio.read(path)
    assert found.notes == (audio.NOT_NUMBERS,)
    assert found.samples.isfinite().all()
    assert not found.samples[10:20].any()
    soundfile.write(path, tone(amplitude=2.0), RATE, "PCM_16")
    assert audio.read(path).notes == (audio.CLIPPED,)
    soundfile.write(path, 0 * tone(), RATE)
    assert audio.read(path).notes == (audio.SILENT,)


def test_a_part_is_read_alone(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(), RATE, "FLOAT")
    assert audio.read(path, start=100, frames=50).samples.tolist() == tone()[100:150].tolist()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.wav", b"", "is empty"),
        ("a.wav", b"speaker,file\n1,a.wav\n" * 9, "is no WAV recording, or damaged; .*ffmpeg -i"),
        ("my talk.m4a", b"\0\0\0 ftypM4A \0\0\0\0" * 9, r"ffmpeg -i '.*my talk.m4a' '.*talk.wav'"),
    ],
)
def test_what_is_no_recording_is_refused_with_the_fix(tmp_path, name, content, told):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=told) as error:
        audio.read(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_a_folder_and_a_recording_without_samples(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        audio.read(tmp_path / "none.wav")
    with pytest.raises(UserError, match="is a folder"):
        audio.read(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), RATE)
    with pytest.raises(UserError, match="holds no sample"):
        audio.read(tmp_path / "a.wav")

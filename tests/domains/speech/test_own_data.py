"""A user's own recordings are divided, mixed and checked before anything is trained."""

import numpy as np
import pytest
import soundfile
import torch

from core.errors import UserError
from domains.speech.own_data import OwnSeparationData


def names(part):
    return {own.id for own in part.mixer.recordings}


def heard(part):
    return {own.talker for own in part.mixer.recordings}


def made(folder, **changes):
    shares = {"val_fraction": 0.25, "test_fraction": 0.25, "val_mixtures": 3, "test_mixtures": 4}
    data = OwnSeparationData(str(folder), **{**shares, **changes})
    data.setup()
    return data


def test_talkers_of_the_test_are_unheard_unless_recordings_are_divided(talkers):
    for seed in ("random", "group:talker"):
        data = made(talkers, split=seed)
        parts = (data.train_set, data.val_set, data.test_set)
        assert sum(len(names(part)) for part in parts) == 48
        assert len(set().union(*map(names, parts))) == 48
        assert (len(data.val_set), len(data.test_set)) == (3, 4)
        assert len(data.train_set) == len(names(data.train_set))
        unheard = not heard(data.test_set) & heard(data.train_set)
        assert unheard == (seed == "group:talker")
        assert ("heard none" in data.summary()[0]) == unheard
    assert data.sizes({"speakers": 3}) == {"speakers": 3}
    again = made(talkers)
    assert again.fingerprint() == data.fingerprint()
    assert torch.equal(again.test_set[2].mixture, data.test_set[2].mixture)
    assert data.parts.split is not None


def test_the_order_resumes_exactly(talkers):
    def batches(data):
        return [batch.mixture for batch in data.train_dataloader()]

    first = made(talkers, segment=0.1, batch_size=4, seed=3)
    whole = batches(first)
    resumed = made(talkers, segment=0.1, batch_size=4, seed=3)
    state = first.state_dict()
    state["position"] = [0, 2]
    resumed.load_state_dict(state)
    rest = batches(resumed)
    assert len(rest) == len(whole) - 2
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[2:], strict=True))


def test_talkers_in_the_names_of_files(talkers, tmp_path):
    flat = tmp_path / "späte Stimmen"
    flat.mkdir()
    for path in talkers.rglob("*.wav"):
        path.rename(flat / f"{path.stem}_t{path.parent.name[-1]}_x.wav")
    with pytest.raises(UserError, match=r"lies in no folder of a talker.*--data\.speaker='REGEX'"):
        made(flat)
    data = made(flat, speaker=r"_(t\d)_", split="random")
    assert heard(data.train_set) <= {f"t{n}" for n in range(8)}
    with pytest.raises(UserError, match="needs exactly one group"):
        made(flat, speaker="_t._")
    with pytest.raises(UserError, match="is no regular expression"):
        made(flat, speaker="(")


def test_wrong_folders_are_told(talkers, tmp_path):
    with pytest.raises(UserError, match=r"--data\.train=.*none: no such file or folder"):
        made(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.m4a").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no recording .*it holds \.m4a.*ffmpeg -i"):
        made(tmp_path / "empty")
    alone = tmp_path / "alone"
    alone.mkdir()
    (talkers / "talker 0").rename(alone / "talker 0")
    with pytest.raises(UserError, match=r"alone has recordings of 1 talker \(talker 0\)"):
        made(alone)
    bad = talkers / "talker 1" / "bad.wav"
    bad.write_text("not a recording")
    with pytest.raises(UserError, match=r"bad\.wav: is no WAV recording, or damaged"):
        made(talkers)
    bad.write_bytes(b"")
    with pytest.raises(UserError, match=r"bad\.wav: is empty"):
        made(talkers)


def test_repairs_are_told(talkers):
    values = np.full(4000, 0.1, np.float32)
    values[:5] = np.nan
    soundfile.write(talkers / "talker 1" / "nan.wav", values, 16000, "FLOAT")
    soundfile.write(talkers / "talker 1" / "silent.wav", np.zeros(3000), 8000)
    stereo = np.random.default_rng(0).uniform(-3, 3, (3000, 2)).clip(-1, 1)
    soundfile.write(talkers / "talker 2" / "loud.wav", stereo, 8000)
    one = talkers / "talker 2" / "0.wav"
    (talkers / "talker 3" / "copy.wav").write_bytes(one.read_bytes())
    data = made(talkers, split="random")
    told = "\n".join(data.summary())
    for note in (
        "samples that are no numbers became zeros: 1 recordings",
        "clipped, with many samples at full scale: 1 recordings",
        "channels were folded into their mean: 1 recordings",
        "silent throughout: 1 recordings",
        "resampled from 16,000 to 8,000 Hz: 1 recordings",
        "silent recordings were left out, silent.wav first",
    ):
        assert note in told
    assert data.facts["notes"] == list(data.parts.notes)
    parts = (data.train_set, data.val_set, data.test_set)
    assert "talker 1/silent.wav" not in set().union(*map(names, parts))


def test_prepared_mixtures_are_taken_as_they_are(tmp_path, prepared):
    root = tmp_path / "set"
    for part in ("tr", "cv", "tt"):
        prepared(root / part, count=3)
    data = made(root, segment=0.1)
    assert [len(part) for part in data.parts.sets] == [3, 3, 3]
    assert data.train_set[0].mixture.shape == (800,)
    assert data.test_set[2].mixture.shape == (2400,)
    assert "mixtures of test that stand in train too: 3" in data.parts.notes
    alone = made(prepared(tmp_path / "one", count=12))
    assert sum(map(len, alone.parts.sets)) == 12
    with pytest.raises(UserError, match=r"--data\.noise: is for recordings of single talkers"):
        made(root, noise="noise")
    with pytest.raises(UserError, match=r"--data\.join: is for recordings of single talkers"):
        made(root, join=1.0)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"overlap": (0.5, 0.2)}, "data.overlap"),
        ({"level": (5.0, -5.0)}, "data.level"),
        ({"speakers": 1}, "data.speakers=1 must be 2 to 5"),
        ({"segment": 0.0}, "data.segment"),
        ({"val_mixtures": 0}, "data.val_mixtures=0"),
        ({"test_fraction": 0.8}, "data.test_fraction=0.8"),
        ({"join": -1.0}, "data.join"),
    ],
)
def test_wrong_values_name_their_key(talkers, changes, told):
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        made(talkers, **changes)

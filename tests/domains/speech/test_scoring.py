"""Anyone's separation is scored, in whatever layout it lies."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from core.errors import UserError
from pleiad import command


@pytest.fixture
def sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return np.random.default_rng(0).normal(0, 0.1, (3, 2, 8000))


def write(path, samples, rate=8000):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, "DOUBLE")


LAYOUTS = ("{0}/s{1}/{2}.wav", "{0}/{2}/s{1}.wav", "{0}/{2}_s{1}.wav", "{0}/{2}_source{1}.wav")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_swapped_talkers(sources, layout, capsys):
    noise = np.random.default_rng(1).normal(0, 0.01, sources.shape)
    for name, (true, estimate) in enumerate(zip(sources, sources + noise, strict=True)):
        write(f"mix/{name}.wav", true.sum(0))
        for talker in (0, 1):
            write(LAYOUTS[0].format("true", talker + 1, name), true[talker])
            write(layout.format("found", 2 - talker, name), estimate[talker] * 3)
    given = ["test", "--estimates=found", "--references", "true", "--mixtures", "mix"]
    assert command.run(given) == 0
    assert "si_sdr_i" in capsys.readouterr().out
    table = pd.read_csv("found/scores.csv")
    assert list(table["name"]) == [0, 1, 2]
    assert set(table["order"]) == {"2 1"}
    assert table["si_sdr"].between(19.5, 20.5).all()
    assert table["si_sdr_i"].between(19, 21).all()
    assert table["sdr"].between(19.5, 22).all()
    means = table[["si_sdr_s1", "si_sdr_s2"]].mean(axis=1)
    np.testing.assert_allclose(table["si_sdr"], means, atol=1e-3)
    assert command.run([*given[:4], "--output", "rows.csv"]) == 0
    assert "si_sdr_i" not in capsys.readouterr().out
    assert "si_sdr_i" not in pd.read_csv("rows.csv")


def test_one_mixture_alone_and_a_silent_reference(sources, capsys):
    for talker in (0, 1):
        write(f"true/s{talker + 1}.wav", sources[0, talker] * talker)
        write(f"found/s{talker + 1}.wav", sources[0, talker] * (1, 0.5)[talker])
    write("mix/meeting.wav", sources[0].sum(0))
    told = ["--estimates", "found", "--references", "true", "--mixtures", "mix"]
    assert command.run(["test", *told]) == 0
    row = pd.read_csv("found/scores.csv").iloc[0]
    assert np.isnan(row["si_sdr_s1"])
    assert row["si_sdr"] == pytest.approx(row["si_sdr_s2"])
    assert row["si_sdr"] > 60
    assert "1 mixtures" in capsys.readouterr().out


def test_what_does_not_belong_together_is_told(sources):
    def told(*arguments):
        with pytest.raises(UserError) as caught:
            command.run(["test", "--estimates", "found", *arguments])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    write("true/a_s1.wav", sources[0, 0])
    write("true/a_s2.wav", sources[0, 1])
    both = ("--references", "true")
    assert "no such folder" in told(*both)
    write("found/notes.wav", sources[0, 0])
    assert "holds no recordings of talkers" in told(*both)
    write("found/a_s1.wav", sources[0, 0])
    assert "one of 1 estimates, but there are 2 references" in told(*both)
    write("found/a_s2.wav", sources[0, 1, :-1])
    assert "7,999 samples at 8,000 Hz" in told(*both)
    write("found/a_s2.wav", sources[0, 1], 16000)
    assert "8,000 samples at 16,000 Hz" in told(*both)
    write("found/a_s2.wav", sources[0, 1])
    write("found/b_s2.wav", sources[0, 1])
    assert "true: 1 mixtures have no references, such as b" in told(*both)
    write("true/b_s1.wav", sources[0, 0])
    write("mix/b_mix.wav", sources[0, 0])
    write("mix/c_mix.wav", sources[0, 0])
    assert "holds no mixture of the name a" in told(*both, "--mixtures", "mix")
    assert "references" in told()
    assert "--foo" in told(*both, "--foo=3")


def test_help_shows_the_options(capsys):
    with pytest.raises(SystemExit) as ended:
        command.run(["test", "--estimates", "--help"])
    assert ended.value.code == 0
    assert "--mixtures" in capsys.readouterr().out
    command.run(["test", "--help"])
    assert "--estimates" in capsys.readouterr().out


@pytest.mark.data
def test_published_estimates_reach_their_published_score(real_data, tmp_path, capsys):
    folder = str(real_data / "speech/MossFormer2_samples_Libri2Mix")
    folders = [f"--{name}={folder}" for name in ("estimates", "references", "mixtures")]
    assert command.run(["test", *folders, f"--output={tmp_path / 'rows.csv'}"]) == 0
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert rows["si_sdr_i"].mean() == pytest.approx(21.7, abs=0.3)  # of the whole test set

"""The layouts of the published sets are read, and what is missing is named."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

import data as catalogue
from core.batch_plan import PlannedIndex
from core.errors import UserError
from domains.speech.data import SeparationData
from domains.speech.layouts import is_prepared, looked_at, read_part
from domains.speech.sets import PreparedMixtures, at_speeds


def items(path, speakers=2, **chosen):
    return looked_at(read_part(path, speakers, **chosen), 8000)[0]


@pytest.mark.parametrize("speakers", [2, 3])
def test_wsj0_mix(tmp_path, prepared, speakers):
    found = items(prepared(tmp_path / "tt", speakers), speakers)
    assert [item.name for item in found] == ["m0", "m1", "m2", "m3"]
    assert [item.frames for item in found] == [1600, 2000, 2400, 2800]
    mixtures = PreparedMixtures(found, 8000)
    for row in range(4):
        item = mixtures[row]
        assert item.sources.shape == (speakers, len(item.mixture))
        torch.testing.assert_close(item.mixture, item.sources.sum(0))
    assert is_prepared(tmp_path)
    assert is_prepared(tmp_path / "tt")


def test_wham_and_whamr_have_their_targets(tmp_path, prepared):
    root = tmp_path / "tt"
    prepared(root, mixture="mix_both", noise=0.1)
    prepared(root, mixture="mix_clean")
    noisy, clean = (items(root, mixture=name) for name in ("mix_both", "mix_clean"))
    assert noisy[0].sources == clean[0].sources
    assert items(root)[0].mixture == clean[0].mixture
    prepared(tmp_path / "rooms", mixture="mix_both_reverb", source="s{}_reverb")
    prepared(tmp_path / "rooms", mixture="mix_clean_anechoic", source="s{}_anechoic")
    found = items(tmp_path / "rooms", mixture="mix_both_reverb")
    assert found[0].sources[0].parent.name == "s1_anechoic"
    found = items(tmp_path / "rooms", mixture="mix_both_reverb", sources="s{}_reverb")
    assert found[0].sources[1].parent.name == "s2_reverb"


@pytest.mark.parametrize(
    ("dataset", "home", "mixture", "source"),
    [
        ("wsj0_2mix", "wsj0-mix/2speakers/wav8k/min", "mix", "s{}"),
        ("wham", "wham/wav8k/min", "mix_both", "s{}"),
        ("whamr", "whamr/wav8k/min", "mix_both_reverb", "s{}_anechoic"),
        ("libri2mix", "Libri2Mix/wav8k/min", "mix_clean", "s{}"),
    ],
)
def test_sets_of_the_catalogue(
    tmp_path, prepared, talkers, monkeypatch, dataset, home, mixture, source
):
    root = tmp_path / "speech" / home
    libri = dataset == "libri2mix"
    for part in ("train-100", "dev", "test") if libri else ("tr", "cv", "tt"):
        prepared(root / part, mixture=mixture, source=source, noise=0.01)
    for file in catalogue.entry(dataset).files:
        path = root / file.path
        path.parent.mkdir(exist_ok=True)
        for folder in (mixture, source.format(1), source.format(2)):
            target = path.parent.parent / folder / path.name
            if not libri:
                target.write_bytes((root / "tt" / folder / "m0.wav").read_bytes())
        path.write_bytes(path.read_bytes() if path.exists() else b"mixture_ID\n")
    monkeypatch.setenv("PLEIAD_DATA", str(tmp_path))
    changes = {"part": "train-100"} if libri else {}
    data = SeparationData(dataset, talkers=str(talkers), speed=True, segment=0.1, **changes)
    data.setup()
    assert len(data.train_set) == 4  # as many as there are on the disk, drawn anew
    assert data.train_set[0].sources.shape == (2, 800)
    assert len(data.test_set) == (4 if libri else 6)
    item = data.test_set.items[0]
    assert item.mixture.parent.name == mixture
    assert [path.parent.name for path in item.sources] == [source.format(1), source.format(2)]
    assert data.facts["setting"] == {"dynamic_mixing": True}
    other = SeparationData(dataset, part="train-360")
    with pytest.raises(UserError, match="lacks the folder train-360"):
        other.setup()


def test_librimix_metadata_of_another_machine(tmp_path, prepared):
    prepared(tmp_path / "test", mixture="mix_clean")
    elsewhere = "/storage/Libri2Mix/wav8k/min/test"
    rows = [
        {
            "mixture_ID": f"m{n}",
            "mixture_path": f"{elsewhere}/mix_clean/m{n}.wav",
            "source_1_path": f"{elsewhere}/s1/m{n}.wav",
            "source_2_path": f"{elsewhere}/s2/m{n}.wav",
            "length": 1600,
        }
        for n in range(4)
    ]
    table = tmp_path / "metadata" / "mixture_test_mix_clean.csv"
    table.parent.mkdir()
    pd.DataFrame(rows).to_csv(table, index=False)
    assert items(table) == items(tmp_path / "test")
    with pytest.raises(UserError, match="has no column 'source_3_path'"):
        items(table, 3)
    rows[2]["source_1_path"] = f"{elsewhere}/s1/lost.wav"
    pd.DataFrame(rows).to_csv(table, index=False)
    with pytest.raises(UserError, match=r"mix_clean\.csv:4: .*lost\.wav: no such file"):
        items(table)


def test_a_partner_that_is_missing_or_differs_is_named(tmp_path, prepared):
    root = prepared(tmp_path / "tt")
    with pytest.raises(UserError, match=r"s3: no such folder, and there are 3 talkers"):
        items(root, 3)
    source = root / "s2" / "m1.wav"
    samples, _ = soundfile.read(source)
    soundfile.write(source, samples[:-10], 8000)
    with pytest.raises(UserError, match=r"s2/m1\.wav: has 1,990 samples, but .*m1\.wav has 2,000"):
        items(root)
    soundfile.write(source, samples, 16000)
    with pytest.raises(UserError, match="has 16,000 samples a second, but"):
        items(root)
    source.unlink()
    with pytest.raises(UserError, match=r"s2/m1\.wav: is missing, though there is the mixture"):
        items(root)
    prepared(tmp_path / "three", 3)
    with pytest.raises(UserError, match=r"more than 2 talkers; set --data\.speakers"):
        items(tmp_path / "three")
    with pytest.raises(UserError, match=r"has no folder mix_both; its folders: mix, s1, s2"):
        items(root, mixture="mix_both")


def test_training_cuts_by_the_seed_and_other_rates_are_resampled(tmp_path, prepared):
    found = items(prepared(tmp_path / "tr"))
    training = PreparedMixtures(found, 8000, segment=1000)
    cuts = [training[PlannedIndex(3, seed)].mixture for seed in (1, 1, 2)]
    assert torch.equal(cuts[0], cuts[1])
    assert not torch.equal(cuts[0], cuts[2])
    assert {len(cut) for cut in cuts} == {1000}
    whole = PreparedMixtures(found, 8000)[3].mixture.unfold(0, 1000, 1)
    assert (whole == cuts[0]).all(1).any()
    up = PreparedMixtures(found, 16000, segment=1000)[3]
    assert up.mixture.shape == (1000,)


def test_speed_keeps_a_mixture_the_sum_of_its_targets():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(2, 4000, generator=generator)
    lengths = set()
    for seed in range(8):
        mixture, played = at_speeds(sources.sum(0), sources, np.random.default_rng(seed))
        torch.testing.assert_close(mixture, played.sum(0))
        lengths.add(played.shape[1])
    assert lengths <= {3810, 4000, 4211}
    assert len(lengths) > 1
    noise = torch.randn(4000, generator=generator)
    mixture, played = at_speeds(sources.sum(0) + noise, sources, np.random.default_rng(3))
    rest = mixture - played.sum(0)
    assert rest.norm() / played.norm() == pytest.approx(0.5**0.5, abs=0.05)

"""A mixture is what its recipe says, and the same for the same seed."""

import numpy as np
import pytest
import soundfile
import torch

from core.batch_plan import PlannedIndex
from core.errors import UserError
from domains.speech import mixing
from domains.speech.mixing import Mixer, Recipe, loudness, reverberated
from domains.speech.sets import DrawnMixtures
from domains.speech.talkers import find_talkers, looked_at


def mixer(talkers, recipe=None, speed=False):
    return Mixer(find_talkers(talkers, "folder"), recipe or Recipe(), "it", speed)


@pytest.mark.parametrize("speakers", [2, 3])
def test_the_mixture_is_the_sum_of_different_talkers(talkers, speakers):
    draw = mixer(talkers, Recipe(speakers))
    for seed in range(20):
        mixture, sources, name = draw(seed)
        torch.testing.assert_close(mixture, sources.sum(0), atol=1e-6, rtol=0)
        peak = max(mixture.abs().max(), sources.abs().max()).item()
        assert peak == pytest.approx(mixing.PEAK, abs=1e-4)
        heard = {part.split("/")[0] for part in name.split(" + ")}
        assert len(heard) == len(sources) == speakers


def test_a_seed_fixes_all_that_is_drawn(talkers):
    draw = mixer(talkers, speed=True)
    assert torch.equal(draw(7)[0], draw(7)[0])
    assert not torch.equal(draw(7)[0][:500], draw(8)[0][:500])
    training = DrawnMixtures(draw, 10, 0, 800)
    first, again = (training[PlannedIndex(3, seed)] for seed in (11, 11))
    assert torch.equal(first.mixture, again.mixture)
    assert not torch.equal(first.mixture, training[PlannedIndex(3, 12)].mixture)
    assert first.sources.shape == (2, 800)
    fixed = DrawnMixtures(draw, 10, 2)
    assert torch.equal(fixed[3].mixture, fixed[PlannedIndex(3, 12)].mixture)
    other = DrawnMixtures(draw, 10, 1)[3]
    assert other.name != fixed[3].name or not torch.equal(other.mixture, fixed[3].mixture)


def test_levels_lie_within_their_bounds(talkers):
    draw = mixer(talkers, Recipe(level=(2.0, 5.0), length="max"))
    found = []
    for seed in range(40):
        _, sources, _ = draw(seed)
        first, second = (loudness(own.numpy()) for own in sources)
        found.append(second - first)
    assert 2 - 0.01 <= min(found) < 3
    assert 4 < max(found) <= 5 + 0.01


def test_dynamic_mixing_draws_levels_as_published(talkers):
    draw = mixer(talkers, Recipe(length="max"))
    found = []
    for seed in range(200):
        _, sources, _ = draw(seed)
        found.append(loudness(sources[1].numpy()) - loudness(sources[0].numpy()))
    assert np.mean(found) == pytest.approx(-2.51, abs=0.6)
    assert np.std(found) == pytest.approx(2.66, abs=0.5)


def test_lengths_and_overlap(talkers):
    lengths = {
        own.id: round((0.3 + 0.05 * int(own.path.stem)) * 8000)
        for own in find_talkers(talkers, "folder")
    }

    def drawn(recipe):
        for seed in range(15):
            mixture, sources, name = mixer(talkers, recipe)(seed)
            yield mixture, sources, [lengths[part] for part in name.split(" + ")]

    for mixture, _, own in drawn(Recipe(length="min")):
        assert len(mixture) == min(own)
    for mixture, _, own in drawn(Recipe(length="max")):
        assert len(mixture) == max(own)
    for mixture, sources, own in drawn(Recipe(overlap=(0.5, 0.5))):
        assert len(mixture) == pytest.approx(sum(own) - min(own) / 2, abs=1)
        assert not sources[0, own[0] :].any()
        assert not sources[1, : len(mixture) - own[1]].any()
    for mixture, *_ in drawn(Recipe(join=1.0)):
        assert len(mixture) == 8000


def test_long_recordings_are_cut_at_random(talkers):
    recordings, _ = looked_at(find_talkers(talkers, "folder"), 8000)
    draw = Mixer(recordings, Recipe(longest=0.25), "it")
    first, second = (draw(seed)[1] for seed in (1, 2))
    assert first.shape == second.shape == (2, 2000)
    both = {tuple(own[:3].tolist()) for seed in range(20) for own in draw(seed)[1]}
    assert len(both) == 40


def test_speed_changes_length_and_pitch(talkers):
    plain, fast = mixer(talkers), mixer(talkers, speed=True)
    lengths = {len(fast(seed)[0]) / 8000 for seed in range(30)}
    assert not {len(plain(seed)[0]) / 8000 for seed in range(30)} >= lengths
    samples = torch.sin(torch.arange(4000) * 2 * torch.pi * 400 / 8000)
    played = mixing.at_speed(samples, 1.05)
    assert len(played) == -(-4000 * 100 // 105)
    pitch = torch.fft.rfft(played).abs().argmax().item() * 8000 / len(played)
    assert pitch == pytest.approx(420, abs=3)


def test_noise_is_in_the_mixture_and_in_no_target(talkers, tmp_path):
    noise = tmp_path / "noise.wav"
    hiss = np.random.default_rng(0).standard_normal(1000) * 0.1
    soundfile.write(noise, hiss, 8000)
    draw = mixer(talkers, Recipe(noises=(noise,), snr=(5.0, 5.0)))
    mixture, sources, _ = draw(1)
    rest = (mixture - sources.sum(0)).numpy()
    loudest = max(loudness(own.numpy()) for own in sources)
    assert loudest - loudness(rest) == pytest.approx(5, abs=0.05)


def test_a_room_is_in_the_mixture_and_only_where_asked_for_in_the_target(talkers, tmp_path):
    response = np.zeros(600, np.float32)
    response[40], response[300] = 0.8, -0.5
    room = tmp_path / "room.wav"
    soundfile.write(room, response, 8000, "FLOAT")
    seeds = range(3)
    dry = [mixer(talkers)(seed) for seed in seeds]
    wet = [mixer(talkers, Recipe(rooms=((room,),)))(seed) for seed in seeds]
    kept = [mixer(talkers, Recipe(rooms=((room,),), reverberant=True))(seed) for seed in seeds]
    for plain, heard, full in zip(dry, wet, kept, strict=True):
        scale = heard[1].norm() / plain[1].norm()
        torch.testing.assert_close(heard[1], plain[1] * scale, atol=1e-4, rtol=0)
        torch.testing.assert_close(full[0], full[1].sum(0), atol=1e-5, rtol=0)
        assert (heard[0] - heard[1].sum(0)).norm() > 0.3 * heard[0].norm()
    click = np.zeros(500, np.float32)
    click[0] = 1
    echo, direct = reverberated(click, response)
    assert np.flatnonzero(np.abs(echo) > 1e-4).tolist() == [0, 260]
    assert direct[0] == pytest.approx(0.8)


def test_too_few_talkers_are_refused(talkers):
    with pytest.raises(UserError, match=r"the test part has recordings of 1 talker \(talker 0\)"):
        Mixer(find_talkers(talkers, "folder")[:6], Recipe(), "the test part")

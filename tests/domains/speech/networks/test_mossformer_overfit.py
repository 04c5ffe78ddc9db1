"""MossFormer learns one real mixture by heart."""

import pytest
import torch
import torch.nn.functional as F

from domains.speech import audio
from domains.speech.metrics import improvement
from domains.speech.mixtures import MixtureBatch
from domains.speech.networks.mossformer import MossFormer
from domains.speech.separation import Separation

SECOND = 8000
BOUNDS = {75: 15.0, 150: 20.0}
"""Steps, and the improvement of SI-SDR in dB that they must reach."""


def spoken(folder, talker):
    """One second of digits that one talker says."""
    files = [folder / f"{digit}_{talker}_0.wav" for digit in range(4)]
    sound = torch.cat([audio.read(file).samples for file in files])
    sound = F.pad(sound, (0, max(0, SECOND - len(sound))))[:SECOND]
    return sound / sound.square().mean().sqrt()


@pytest.mark.slow
@pytest.mark.data
def test_learns_one_mixture_of_digits_by_heart(real_data):
    folder = real_data / "speech/free-spoken-digit-dataset/recordings"
    sources = torch.stack([spoken(folder, talker) for talker in ("jackson", "nicolas")])[None]
    length, row = torch.tensor([SECOND]), torch.tensor([0])
    batch = MixtureBatch(sources.sum(1), sources, length, row, ["mixture"])
    torch.manual_seed(0)
    task = Separation(MossFormer(width=128, depth=4))
    optimizer = torch.optim.Adam(task.network.parameters(), lr=1e-3)
    for number in range(1, max(BOUNDS) + 1):
        task.train()
        task.step(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(task.network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        if number in BOUNDS:
            task.eval()
            with torch.no_grad():
                estimates = task.network(batch.mixture)
            gain = improvement(estimates, batch.sources, batch.mixture, batch.lengths)["si_sdr_i"]
            print(f"{gain.item():.1f} dB after {number} steps")
            assert gain.item() >= BOUNDS[number]

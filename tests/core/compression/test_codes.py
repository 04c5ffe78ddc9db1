"""Packing of numbers, and how far what is read is from what was kept."""

import pytest
import torch

from core.compression.codes import (
    Policy,
    int8,
    mask,
    normalised,
    pack_bits,
    pack_halves,
    shares,
    unpack_bits,
    unpack_halves,
)


def read(code):
    return code.read(*code.tensors)


def size(code):
    return sum(t.untyped_storage().nbytes() for t in code.tensors)


@pytest.mark.parametrize("shape", [(8,), (3, 5), (7,), (1,), (2, 4, 16), ()])
def test_bits_and_halves_come_back(shape):
    torch.manual_seed(0)
    kept = torch.rand(shape) < 0.5
    assert torch.equal(unpack_bits(kept.shape, pack_bits(kept)), kept)
    assert len(pack_bits(kept)) == -(-kept.numel() // 8)
    codes = torch.randint(0, 16, shape, dtype=torch.uint8)
    assert torch.equal(unpack_halves(pack_halves(codes), codes.shape), codes)
    assert len(pack_halves(codes)) == -(-codes.numel() // 2)


def test_every_byte_of_bits_comes_back():
    every = torch.arange(256, dtype=torch.uint8)
    kept = (every.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
    assert torch.equal(pack_bits(kept.bool()).sort().values, every)
    assert torch.equal(unpack_bits(kept.shape, pack_bits(kept.bool())), kept.bool())


def test_fixed_steps_are_sixteenths_up_to_eight():
    x = torch.tensor([[0.0, 0.03, 0.04, -8.0, 7.99, 9.0, -100.0, 3.1]])
    policy = Policy(range="fixed", passes=1)
    found = read(int8(x, policy))
    assert found.tolist() == [[0.0, 0.0, 0.0625, -8.0, 7.9375, 7.9375, -8.0, 3.125]]
    assert (policy.clipped, policy.counted) == (3, 8)
    int8(x, Policy(range="fixed", passes=2))
    assert policy.counted == 8  # only one pass of many is counted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transposed", [False, True])
def test_scaled_rows_follow_outliers_and_cost_one_byte_and_a_scale(dtype, transposed):
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[2] *= 500
    given = x.mT if transposed else x
    code = int8(given, Policy())
    found = read(code)
    found = found.mT if transposed else found
    assert found.dtype == dtype
    error = (found - x).float().abs().amax(1) / x.float().abs().amax(1)
    assert error.max() < 0.5 / 127 + (1e-2 if dtype == torch.bfloat16 else 1e-3)
    assert size(code) == 5 * (64 + (8 if dtype == torch.float64 else 4))


def test_short_rows_share_one_scale():
    x = torch.randn(100, 3)
    assert size(int8(x, Policy())) == 304


def test_zeros_stay_zeros():
    assert read(int8(torch.zeros(4, 64), Policy())).abs().max() == 0
    assert read(shares(torch.zeros(4, 64), Policy(), -1)).abs().max() == 0


def test_one_is_a_share_of_one():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    found = read(shares(p, Policy(range="fixed"), -1))
    assert found[0].tolist() == [1.0, 0.0]
    assert (found[1] - 0.5).abs().max() < 0.5 / 255 + 1e-7


def test_small_shares_of_long_rows_do_not_vanish():
    p = torch.full((2, 1000), 1e-3)
    assert read(shares(p, Policy(range="fixed"), -1)).abs().max() == 0
    assert torch.allclose(read(shares(p, Policy(), -1)), p)


@pytest.mark.parametrize(("mode", "most", "bytes_each"), [("int8", 0.02, 1.0), ("int4", 0.21, 0.5)])
def test_normalised_values(mode, most, bytes_each):
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).clamp(-2.5, 2.5)
    code = normalised(x, Policy(ln_mode=mode))
    assert (read(code) - x).abs().max() < most
    assert abs(size(code) / x.numel() - bytes_each) < 0.04


def test_topk_keeps_the_largest_tenth():
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    code = normalised(x, Policy(ln_mode="topk"))
    found = read(code)
    assert int((found != 0).sum()) == 20
    assert torch.equal(found[found != 0], x[found != 0])
    assert x[found == 0].abs().max() <= x[found != 0].abs().min()
    assert size(code) == 20 * 8


@pytest.mark.parametrize("bits", [1, 8])
def test_masks(bits):
    kept = torch.rand(4, 64) < 0.5
    code = mask(kept, Policy(mask_bits=bits))
    assert torch.equal(read(code), kept)
    assert size(code) == 256 * bits // 8

"""What streams of the VAE hold: nothing of a caller's, nothing twice, nothing stale."""

from __future__ import annotations

import pickle
from copy import deepcopy

import pytest
import torch

from rest_fast.models.vae import TemporalVAE
from tests.kit.models import F64, latents, randomise, video
from tests.kit.releases import LAYOUTS, layout, relative


@pytest.mark.parametrize("mode", ["causal", "lookahead(2)"])
def test_a_stream_neither_keeps_nor_writes_what_a_caller_brought(mode):
    """Latents may be reused at once, and a state that is restored is written to nothing that was given."""
    module = layout("0.9.5", mode == "causal")
    z = latents(module, 7)
    stream, want = module.stream(mode=mode), module.stream(mode=mode)
    given = z[:, :, :1].clone()
    stream.prime(given)
    want.prime(z[:, :, :1])
    kept = stream.snapshot()
    given.zero_()
    other = latents(module, 3, seed=8)
    untouched = other.clone()
    stream.decode(other)
    stream.restore(kept)
    assert torch.equal(other, untouched) and not given.any()
    for part in z[:, :, 1:].split(3, 2):
        assert torch.equal(stream.decode(part), want.decode(part))
    sizes = {path: (t.untyped_storage().nbytes(), t.nbytes) for path, t in stream.state.histories.items()}
    assert all(held == own for held, own in sizes.values()), sizes
    tensors = stream.state.to_tensors()
    before = {path: tensor.clone() for path, tensor in tensors.items()}
    stream.decode(other)
    assert all(torch.equal(tensors[path], tensor) for path, tensor in before.items())


def test_prime_is_once_and_at_the_start():
    module = layout("0.9.5", False)
    stream, z = module.stream(mode="lookahead(1)"), latents(module, 4)
    stream.prime(z[:, :, :1])
    with pytest.raises(ValueError, match="prime: expected a stream at its start"):
        stream.prime(z[:, :, :1])
    assert sum(x.shape[2] for x in (stream.decode(z[:, :, 1:]), stream.flush())) == 25
    with pytest.raises(ValueError, match="prime: expected a stream at its start"):
        stream.prime(z[:, :, :1])
    with pytest.raises(ValueError, match="latents: expected"):
        module.stream(mode="lookahead(1)").prime(torch.zeros(3, dtype=F64))


def test_a_state_without_some_memory_is_refused():
    stream = layout("0.9.5", True).stream()
    stream.decode(latents(stream.vae, 2))
    state = stream.snapshot()
    del state.histories["decoder.conv_out"]
    with pytest.raises(ValueError, match=r"got one without \['decoder.conv_out'\]"):
        stream.restore(state)


def test_scratch_is_that_of_the_longest_piece():
    module = layout("0.9.5", False)
    z, sizes = latents(module, 30), []
    for plan in ([10, 10], [10, 10, 1, 2, 3, 4]):
        stream = module.stream(mode="lookahead(0)")
        for part in z[:, :, : sum(plan)].split(plan, 2):
            stream.decode(part)
        sizes.append(stream.work.nbytes)
    assert sizes[0] == sizes[1]


def change_bias(module, bias):
    with torch.no_grad():
        bias.add_(0.5)


def replace_bias(module, bias):
    module.decoder.conv_out.bias = torch.nn.Parameter(bias.detach() + 0.5, requires_grad=False)


def assign_bias(module, bias):
    module.load_state_dict({"decoder.conv_out.bias": bias.detach() + 0.5}, strict=False, assign=True)


@pytest.mark.parametrize("change", [change_bias, replace_bias, assign_bias])
def test_what_is_derived_from_weights_follows_them(change):
    module = randomise(TemporalVAE(LAYOUTS["0.9.5"]).double(), 6).requires_grad_(False).pack()
    z = latents(module, 2)
    before = module.decode(z)
    change(module, module.decoder.conv_out.bias)
    torch.testing.assert_close(module.decode(z), before + 0.5, rtol=0, atol=1e-9)


def test_a_step_of_a_fused_optimiser_is_seen():
    """It does not count as a change of the tensor: nothing is kept of weights that learn."""
    module = randomise(TemporalVAE(LAYOUTS["0.9.5"]), 6)
    z = latents(module, 2).float()
    with torch.no_grad():
        before = module.decode(z)
    module.decode(z).square().mean().backward()
    torch.optim.AdamW(module.decoder.parameters(), lr=0.05, fused=True).step()
    with torch.no_grad():
        after = module.decode(z)
    assert relative(after, before) > 0.1
    torch.testing.assert_close(after, module.decode(z).detach(), rtol=1e-3, atol=1e-3)


def test_a_copy_holds_no_second_weights():
    module = randomise(TemporalVAE(LAYOUTS["0.9.5"]).double(), 6).requires_grad_(False)
    fresh = len(pickle.dumps(module))
    want = module.decode(latents(module, 2))
    assert len(pickle.dumps(module)) < 1.01 * fresh
    for copy in (pickle.loads(pickle.dumps(module)), deepcopy(module)):
        assert torch.equal(copy.decode(latents(module, 2)), want)


def test_packed_weights_are_held_once():
    module = randomise(TemporalVAE(LAYOUTS["0.9.5"]), 6).requires_grad_(False)
    want = module.decode(latents(module, 2).float())
    module.pack()
    torch.testing.assert_close(module.decode(latents(module, 2).float()), want, rtol=1e-5, atol=1e-5)
    for conv in (m for m in module.decoder.modules() if type(m).__name__ == "CausalConv3d"):
        if conv is not module.decoder.conv_out:
            assert conv.__dict__["ordered_pair"].value[0].data_ptr() == conv.weight.data_ptr()


def test_encoding_outside_no_grad_keeps_nothing_alive():
    module = layout("0.9.1", True)
    stream = module.encode_stream()
    stream.encode(video(module, 33))
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in stream.state.histories.values())

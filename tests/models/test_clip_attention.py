"""The context of the layout ``streaming``: what training may cut, keep and replace; and life without a sink."""

from __future__ import annotations

import pytest
import torch

from rest_fast.models.clip_attention import Context
from tests.kit.models import clip, plain_velocity, toy, toy_dit

FRAMES = 13


def setup(**changes):
    config = toy(**changes)
    dit = toy_dit(config)
    return config, dit, clip(dit, config, FRAMES)


def frame_norms(gradient: torch.Tensor) -> torch.Tensor:
    """[F] of a gradient [1, F T, C]."""
    return gradient[0].unflatten(0, (FRAMES, -1)).flatten(1).norm(dim=1)


def gradients(dit, inputs, context: Context | None, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(velocity, gradient of the sum of a chunk's squared velocity by z)."""
    z, t, codes = inputs
    z = z.clone().requires_grad_(True)
    v = dit(z, t, codes, "streaming", context)
    first = 1 + 3 * chunk
    loss = v[:, first * dit.tokens : (first + 3) * dit.tokens].square().sum()
    return v.detach(), torch.autograd.grad(loss, z)[0]


@pytest.mark.parametrize("context_chunks, reach", [(1, 2), (2, 3)])
def test_gradients_go_through_the_context_or_not(context_chunks, reach):
    """Two blocks: chunk 3 hears of chunk 2 directly, and of chunk 1 through chunk 2's second block, ..."""
    _, dit, inputs = setup(stream__context_chunks=context_chunks)
    free, through = gradients(dit, inputs, Context(), 3)
    cut, alone = gradients(dit, inputs, Context(gradient=False), 3)
    assert torch.equal(free, cut)  # the same computation
    own = slice(10, 13)
    assert (frame_norms(through)[own] > 1e-3).all() and (frame_norms(alone)[own] > 1e-3).all()
    assert (frame_norms(through)[1:10].flip(0)[: 3 * reach - 3] > 1e-6).all()
    assert not frame_norms(alone)[1:10].any()
    assert frame_norms(alone)[0] > 1e-3  # the reference is no context: it learns from every chunk


def test_nothing_else_is_cut():
    """The gradient is the one with keys and values of the context as constants: recorded, and put in again."""
    _, dit, inputs = setup(stream__context_chunks=2)
    record: dict = {}
    dit(*inputs, "streaming", Context(record=record))
    for chunk in range(4):
        v, cut = gradients(dit, inputs, Context(gradient=False), chunk)
        again, constant = gradients(dit, inputs, Context(keys_values=record), chunk)
        assert torch.equal(v, again)
        torch.testing.assert_close(cut, constant, rtol=0, atol=0)
    first = gradients(dit, inputs, None, 0)[1]
    torch.testing.assert_close(gradients(dit, inputs, Context(gradient=False), 0)[1], first, rtol=0, atol=0)


@pytest.mark.parametrize("positions", ["window", "absolute"])
@pytest.mark.parametrize("context_chunks", [0, 1, 2])
def test_a_recorded_context_put_in_again_changes_nothing(context_chunks, positions):
    _, dit, inputs = setup(stream__context_chunks=context_chunks, stream__positions=positions)
    record: dict = {}
    v = dit(*inputs, "streaming", Context(record=record))
    assert sorted(record) == [0, 1] and all(k.shape == v.shape == (1, 52, 2, 16) for k, v in record.values())
    assert not any(x.requires_grad for pair in record.values() for x in pair)
    assert torch.equal(v, dit(*inputs, "streaming"))
    assert torch.equal(v, dit(*inputs, "streaming", Context(keys_values=record)))


def test_a_context_of_another_pass():
    """Later chunks see the other pass's chunks; the first one has no context, and the reference is this pass's own."""
    config, dit, inputs = setup(dit__layers=1)
    other = clip(dit, config, FRAMES, seed=5)
    record: dict = {}
    dit(*other, "streaming", Context(record=record))
    got = dit(*inputs, "streaming", Context(keys_values=record))
    chunk, tokens = 3 * dit.tokens, dit.tokens
    assert torch.equal(got[:, : tokens + chunk], dit(*inputs, "streaming")[:, : tokens + chunk])
    for i in range(1, 4):  # in one block keys and values of a chunk depend on its own input alone
        z, t, codes = (x.clone() for x in inputs)
        before, frames = slice(tokens + (i - 1) * chunk, tokens + i * chunk), slice(3 * i - 2, 3 * i + 1)
        z[:, before], t[:, frames], codes[:, frames] = other[0][:, before], other[1][:, frames], other[2][:, frames]
        here = slice(tokens + i * chunk, tokens + (i + 1) * chunk)
        want = dit(z, t, codes, "streaming")[:, here]
        torch.testing.assert_close(got[:, here], want, rtol=1e-12, atol=1e-12)
        assert (want - dit(*inputs, "streaming")[:, here]).abs().max() > 1e-2


@pytest.mark.parametrize("positions", ["window", "absolute"])
@pytest.mark.parametrize("context", [0, 1, 2])
def test_without_a_sink_the_reference_is_seen_by_the_first_chunk_alone(context, positions):
    config, dit, inputs = setup(stream__context_chunks=context, stream__positions=positions, stream__sink=False)

    def view(frame: int) -> tuple[float, dict[int, float]]:
        """As written in ``StreamConfig.sink``: the reference, the chunks of the context and the own one."""
        if frame == 0:
            return 0, {0: 0}
        i = (frame - 1) // 3
        base = 1 + 3 * (i if positions == "absolute" else min(i, context))
        seen = {f: base + f - (1 + 3 * i) for f in range(1 + 3 * max(0, i - context), 4 + 3 * i)}
        return seen[frame], {0: 0, **seen} if i == 0 else seen

    got = dit(*inputs, "streaming")
    # tables of cos and sin are float32, as in test_dit.py
    torch.testing.assert_close(got, plain_velocity(dit, config, *inputs, view), rtol=0, atol=5e-6)
    with_sink = toy_dit(toy(stream__context_chunks=context, stream__positions=positions))(*inputs, "streaming")
    first = 4 * dit.tokens
    assert torch.equal(got[:, :first], with_sink[:, :first])
    assert (got[:, first:] - with_sink[:, first:]).abs().max() > 1e-2

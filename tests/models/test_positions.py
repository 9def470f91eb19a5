"""The prebuilt tables against angles written out, and that they survive what happens to a model."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from rest_fast.models.positions import PositionTables
from tests.kit.models import toy


def test_tables_are_the_angles_of_the_paper():
    """theta^(i / (n - 1)) pi / 2 times 2 p / extent - 1, p in seconds or pixels."""
    config = toy()
    tables, n = PositionTables(config), config.dit.width // 6
    frequencies = [config.dit.rope_theta ** (i / (n - 1)) * math.pi / 2 for i in range(n)]
    axes = [(tables.window, config.latent_seconds), (tables.y, config.vae.spatial), (tables.x, config.vae.spatial)]
    for (table, step), extent in zip(axes, config.dit.rope_max, strict=True):
        for p in range(len(table)):
            for i, frequency in enumerate(frequencies):
                angle = frequency * (2 * p * step / extent - 1)
                assert table[p, i].tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-6)
    assert (len(tables.window), len(tables.y), len(tables.x)) == (config.stream.window, *config.grid)
    turned = torch.view_as_complex(tables.window[3]) * torch.view_as_complex(tables.chunk_back)
    torch.testing.assert_close(turned, torch.view_as_complex(tables.window[0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "move", [torch.nn.Module.half, lambda m: m.to(torch.bfloat16), torch.nn.Module.double, copy.deepcopy]
)
def test_tables_keep_their_precision(move):
    tables = PositionTables(toy())
    before = {name: table.clone() for name, table in tables.named_buffers()}
    for name, table in move(tables).named_buffers():
        assert table.dtype == (torch.float64 if name == "freqs" else torch.float32)
        assert torch.equal(table, before[name])
    assert not tables.state_dict()


def test_positions_of_chunks():
    """Of a full window they stay; absolute ones go on."""
    window, absolute = (PositionTables(toy(stream__positions=kind)) for kind in ("window", "absolute"))
    assert [window.base(i) for i in range(4)] == [1, 4, 4, 4]  # one chunk of context, three frames
    assert [absolute.base(i) for i in range(4)] == [1, 4, 7, 10]

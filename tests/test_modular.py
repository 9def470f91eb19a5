"""The pipeline as diffusers' modular blocks, where the installed diffusers has blocks that iterate."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from rest_fast import RestPipeline
from tests.kit.toys import sound

pytestmark = pytest.mark.slow  # importing diffusers takes seconds

RATE = 16000


def iterates() -> bool:
    return hasattr(pytest.importorskip("diffusers.modular_pipelines"), "IterativePipelineBlocks")


def test_streamed_and_called_blocks_are_the_pipelines(model, avatar):
    if not iterates():
        pytest.skip("this diffusers has no IterativePipelineBlocks")
    modular = importlib.import_module("rest_fast.modular")
    pipe = RestPipeline(model)
    made = modular.modular_pipeline(pipe)
    assert made.blocks.supports_streaming

    def given():
        samples, generator = sound(RATE, 1.2), torch.Generator().manual_seed(7)
        return {"image": avatar, "audio": samples, "sampling_rate": RATE, "generator": generator}

    want = [block.video for block in pipe.stream(**given())]
    streamed = []
    for event in made.stream(**given()):
        streamed.append(event.loop_kwargs["block"].video)
        assert len(event.state.get("blocks")) == len(streamed)  # each as soon as it is made
    called = [block.video for block in made(**given(), output="blocks")]
    assert len(want) == 4 and np.array_equal(streamed, want) and np.array_equal(called, want)
    with pytest.raises(ValueError, match="'audio' is missing"):
        made(image=avatar)


def test_a_diffusers_without_them_is_named():
    if iterates():
        pytest.skip("this diffusers has IterativePipelineBlocks")
    with pytest.raises(ImportError, match=r"rest_fast.modular: expected a diffusers with IterativePipelineBlocks"):
        importlib.import_module("rest_fast.modular")

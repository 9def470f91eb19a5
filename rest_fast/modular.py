"""The pipeline as blocks of diffusers' modular pipelines, to be streamed there or put among other blocks.

Needs a diffusers with ``IterativePipelineBlocks``; no release up to 0.42.1 has them. There is one loop, over the blocks
of a video, since the loops over chunks and sampling steps belong to the session.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar

try:
    from diffusers.modular_pipelines import (
        ComponentSpec,
        InputParam,
        IterativePipelineBlocks,
        ModularLoopPipelineBlocks,
        OutputParam,
    )
except ImportError as error:
    raise ImportError(f"rest_fast.modular: expected a diffusers with IterativePipelineBlocks, got: {error}") from error

from rest_fast.pipeline import RestPipeline

REQUIRED = {"image": "a photo, or an avatar", "audio": "a file, or samples with their rate"}
OPTIONAL = ("sampling_rate", "num_inference_steps", "guidance_scale", "generator")


class RestKeep(ModularLoopPipelineBlocks):
    """Appends the block to ``blocks``."""

    model_name = "rest"

    @property
    def description(self) -> str:
        return "Keeps a block of 8 frames and their sound; whoever streams may empty the list."

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [OutputParam("blocks", type_hint=list, description="the rest_fast.Block of the video so far, in order")]

    def __call__(self, components: Any, state: Any, block: Any) -> tuple[Any, Any]:
        state.get("blocks").append(block)
        return components, state


class RestBlocks(IterativePipelineBlocks):
    """One iteration for each :class:`rest_fast.Block` that :meth:`RestPipeline.stream` gives."""

    model_name = "rest"
    block_classes: ClassVar[list[type]] = [RestKeep]
    block_names: ClassVar[list[str]] = ["keep"]

    @property
    def description(self) -> str:
        return "Makes a photo speak, block by block."

    @property
    def expected_components(self) -> list[Any]:
        return [ComponentSpec("rest", type_hint=RestPipeline)]

    @property
    def loop_variables(self) -> list[str]:
        return ["block"]

    @property
    def loop_inputs(self) -> list[Any]:
        required = [InputParam(name, required=True, description=text) for name, text in REQUIRED.items()]
        return required + [InputParam(name, description=f"of RestPipeline.stream: {name}") for name in OPTIONAL]

    def stream(self, components: Any, state: Any) -> Generator[Any, None, tuple[Any, Any]]:
        given = self.get_block_state(state)
        state.set("blocks", [])
        for block in components.rest.stream(**{name: given[name] for name in (*REQUIRED, *OPTIONAL)}):
            components, state = yield from self.stream_step(components, state, block=block)
        return components, state

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        for _ in self.stream(components, state):
            pass  # the state is changed in place
        return components, state


def modular_pipeline(pipe: RestPipeline) -> Any:
    """diffusers' ``ModularPipeline`` of :class:`RestBlocks` around a loaded pipeline.

    ``for event in modular_pipeline(pipe).stream(image=..., audio=...)`` gives ``event.loop_kwargs["block"]``.
    """
    made = RestBlocks().init_pipeline()
    made.update_components(rest=pipe)
    return made

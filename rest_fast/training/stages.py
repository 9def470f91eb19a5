"""The stages of training as one table, in their order.

It imports nothing heavy, because the command line reads it, too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageInfo:
    """What a stage needs and does. It begins with the weights of the stage before it, if there is one."""

    about: str  # one line for the command line
    needs: tuple[str, ...] = ()  # stages whose results must be in OUT; ``--init`` may take their place
    always_needs: tuple[str, ...] = ()  # those of ``needs`` whose place ``--init`` cannot take
    data: str = "features"  # the field that the clips must have
    latents: bool = False  # whether it trains on latents; the clips need these, or video to make them from
    same_vae: bool = False  # whether the stage before trained on latents, too, so that the VAE must be the same
    samples: bool = False  # whether it writes a sample video from time to time

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts of the stage's settings that have a batch of their own."""
        return ("mixer",) if self.data == "video" else ()


STAGES: dict[str, StageInfo] = {
    "vae": StageInfo("the VAE, on pictures; left out of all when --init or --vae gives one", data="video"),
    "speech": StageInfo("SpeechAE: speech features to codes and back"),
    "teacher": StageInfo("the transformer over whole clips, not streaming", needs=("speech",), latents=True),
    "student": StageInfo(
        "the streaming transformer with the ID-Context cache",
        needs=("teacher",),
        latents=True,
        same_vae=True,
        samples=True,
    ),
    "asd": StageInfo(
        "Asynchronous Streaming Distillation of the student from the teacher",
        needs=("teacher", "student"),
        always_needs=("teacher",),
        latents=True,
        same_vae=True,
        samples=True,
    ),
}

CAUSAL_DECODER = "causal-decoder"  # no part of the chain: it makes a VAE out of a VAE
ABOUT = {name: stage.about for name, stage in STAGES.items()} | {
    "all": "all stages above, in this order",
    CAUSAL_DECODER: "on its own: makes the decoder of --vae causal, so that it streams without delay; gives a VAE",
}

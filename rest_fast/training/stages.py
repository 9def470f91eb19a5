"""The stages of training as one table, in their order, each with what it needs.

Nothing heavy is imported here: the command line reads the table, too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageInfo:
    """A stage begins with the result of the one before it, where there is one."""

    about: str  # one line, for the command line
    needs: tuple[str, ...] = ()  # stages whose results must be in OUT, unless ``--init`` gives them
    keeps: tuple[str, ...] = ()  # of these: those that ``--init`` cannot give
    data: str = "features"  # field that the clips must have
    latents: bool = False  # it is trained on latents: the clips must have them, or pictures to make them from
    again: bool = False  # the stage before it was trained on latents, too: the VAE must be the same
    samples: bool = False  # it writes a video of its model now and then

    @property
    def parts(self) -> tuple[str, ...]:
        """Settings with a batch of their own, below those of the stage."""
        return ("mixer",) if self.data == "video" else ()


STAGES: dict[str, StageInfo] = {
    "vae": StageInfo("the VAE, on pictures; left out of all when --init or --vae gives one", data="video"),
    "speech": StageInfo("SpeechAE: speech features to codes and back"),
    "teacher": StageInfo("the transformer over whole clips, not streaming", needs=("speech",), latents=True),
    "student": StageInfo(
        "the streaming transformer with the ID-Context cache",
        needs=("teacher",),
        latents=True,
        again=True,
        samples=True,
    ),
    "asd": StageInfo(
        "Asynchronous Streaming Distillation of the student from the teacher",
        needs=("teacher", "student"),
        keeps=("teacher",),
        latents=True,
        again=True,
        samples=True,
    ),
}

CAUSAL_DECODER = "causal-decoder"  # stands alone: from a VAE to a VAE
ABOUT = {name: stage.about for name, stage in STAGES.items()} | {
    "all": "all stages above, in this order",
    CAUSAL_DECODER: "on its own: makes the decoder of --vae causal, so that it streams without delay; gives a VAE",
}

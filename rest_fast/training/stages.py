"""The stages of training as one table: in their order, each with what it needs and what it is begun from.

Nothing heavy is imported here: the command line reads the table, too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """``fields``: of prepared clips, one of which it is trained on, beside the speech features of all but ``vae``."""

    about: str  # one line, for the command line
    needs: tuple[str, ...] = ()  # stages whose results it is begun from
    keeps: tuple[str, ...] = ()  # of these, those that are needed in OUT even where ``--init`` gives the rest
    data: str = "features"  # field that the clips must have
    latents: bool = False  # it is trained on clips that went through the VAE, with which it has to agree from then on
    again: bool = False  # it goes on from latents that an earlier stage was trained on
    samples: bool = False  # it shows what its model makes by now

    @property
    def parts(self) -> tuple[str, ...]:
        """Settings with a batch of their own, below those of the stage."""
        return ("mixer",) if self.data == "video" else ()


STAGES: dict[str, Stage] = {
    "vae": Stage("the VAE, on pictures; left out of all when --init or --vae gives one", data="video"),
    "speech": Stage("SpeechAE: speech features to codes and back"),
    "teacher": Stage("the transformer over whole clips, not streaming", needs=("speech",), latents=True),
    "student": Stage(
        "the streaming transformer with the ID-Context cache",
        needs=("teacher",),
        latents=True,
        again=True,
        samples=True,
    ),
    "asd": Stage(
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

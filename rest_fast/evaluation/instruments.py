"""What there is to measure with: opened and checked before any work; what is missing, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError

from rest_fast.evaluation.distances import FID, FVD, Embedder
from rest_fast.evaluation.mouths import DrawnMouths, LandmarkCommand, LandmarkFiles, MouthReader
from rest_fast.evaluation.readers import LatentReader, PixelReader, fit_pixel_reader, training_crops
from rest_fast.evaluation.sources import EvaluationError, Examples
from rest_fast.evaluation.syncnet import SyncNet
from rest_fast.model import Model
from rest_fast.training.synthetic.clips import CLIPS, Clips

READER = "reader.safetensors"


@dataclass(frozen=True)
class Given:
    """What the user gave; see :func:`rest_fast.evaluation.evaluate.evaluate`."""

    reader: Path | None = None
    landmarks: Path | None = None
    landmark_command: str | None = None
    embedder: Path | None = None
    inception: Path | None = None
    i3d: Path | None = None
    syncnet: Path | None = None


@dataclass
class Instruments:
    """None where something is missing, which ``missing`` names."""

    reader: PixelReader | None = None
    latents: LatentReader | None = None
    mouths: MouthReader | None = None
    embedder: Embedder | None = None
    fid: FID | None = None
    fvd: FVD | None = None
    syncnet: SyncNet | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(
        cls, given: Given, model: Model, examples: Examples, data: Path, out: Path, names: list[str]
    ) -> Instruments:
        """``names``: of the videos whose mouths are to be read."""
        tools = cls()
        if given.landmarks is not None and given.landmark_command is not None:
            raise EvaluationError("evaluate: landmarks: expected a folder or a command, got both")
        tools.open_networks(given)
        if examples.drawn:
            tools.open_readers(given.reader, model, data, out)
        elif given.reader is not None:
            raise EvaluationError(f"evaluate: reader: expected drawn clips to read, got filmed ones in {data}")
        tools.open_mouths(given, examples, out, names)
        return tools

    def open_networks(self, given: Given) -> None:
        if given.embedder is None:
            self.missing["identity by a face recogniser"] = "no network: --embedder FILE (TorchScript or .pt2)"
        else:
            self.embedder = Embedder(given.embedder)
        if given.inception is None:
            self.missing["FID"] = 'no weights: pip install "rest_fast[fid]" and --inception FILE'
        else:
            self.fid = FID(given.inception)
        if given.i3d is None:
            self.missing["FVD"] = "no network: --i3d FILE (TorchScript)"
        else:
            self.fvd = FVD(given.i3d)
        if given.syncnet is None:
            self.missing["SyncNet"] = "no weights: --syncnet FILE"
        else:
            self.syncnet = SyncNet(given.syncnet)

    def open_readers(self, given: Path | None, model: Model, data: Path, out: Path) -> None:
        """Of drawn mouths: a file's; those fitted on a folder of clips, of which that of pixels is written to ``out``;
        that beside the data; or none."""
        missing = "lip sync of latents"
        self.missing[missing] = "no clips to fit a reader of this model's latents on: --reader FOLDER"
        if given is None or given.is_file():
            path = data.parent / READER if given is None else given
            self.reader = _load(path) if path.is_file() else None
            return
        if not (given / CLIPS).is_file():
            raise EvaluationError(f"reader: expected a file, or a folder of drawn clips with {CLIPS}, got {given}")
        if given.resolve() == data.resolve():
            raise EvaluationError(f"reader: expected other clips than those to evaluate on, got {given} for both")
        clips, want = Clips(given), (model.config.height, model.config.width)
        self.reader = fit_pixel_reader(*training_crops(clips))
        out.mkdir(parents=True, exist_ok=True)
        self.reader.save(out / READER)
        if clips.video.shape[2:4] == want:
            self.latents = LatentReader.fit(model, clips)
            del self.missing[missing]

    def open_mouths(self, given: Given, examples: Examples, out: Path, names: list[str]) -> None:
        if given.landmarks is not None:
            self.mouths = LandmarkFiles(given.landmarks, names)
        elif given.landmark_command is not None:
            self.mouths = LandmarkCommand(given.landmark_command)
        elif self.reader is not None:
            self.mouths = DrawnMouths(self.reader)
        elif examples.drawn:
            self.missing["lip sync"] = "no reader of drawn mouths: --reader FILE, or a folder of other clips to fit one"
        else:
            where = out / "videos"
            self.missing["lip sync"] = f"no landmarks of the videos in {where}: make them, then --landmarks FOLDER"
        if self.reader is None:
            self.missing["lip sync of long streams"] = "the true mouth is known of drawn faces alone, with --reader"


def _load(path: Path) -> PixelReader:
    try:
        return PixelReader.load(path)
    except (SafetensorError, RuntimeError) as e:
        line = str(e).splitlines()[0]
        raise EvaluationError(f"reader: {path}: expected a fitted reader, got what does not load ({line})") from None

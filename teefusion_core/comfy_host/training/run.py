"""A student trained on a ComfyUI model, from settings to student file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from ... import __version__
from ...errors import InvalidConfig
from ...files.sharpener_file import SharpenerInfo
from ...files.student_file import StudentInfo, write_described
from ...guidance.methods import EMBEDDER
from ...training.adapters import FULL, exchanged
from ...training.checkpoint import CheckpointFolder
from ...training.loop import StepReport, train
from ...training.loop_settings import TrainSettings
from ...training.processes import Processes
from ...training.sharpener_adapter import ALPHA, ALPHA_MAX, ALPHA_MIN, Sharpening
from ...training.trajectory_cache import TrajectoryCache
from ..guidance.student_loader import base_fingerprint
from .distillation import Distillation
from .memory_check import Need, check_memory


@dataclass(frozen=True)
class Student:
    """What a training has come to.

    Attributes:
        tensors, info: of the student file, or of the sharpener file.
        update: what was trained, as LoRA loaders read it; nothing of a sharpener.
        losses: of every step since the start.
        finished: whether these are all.
    """

    tensors: dict[str, Tensor]
    update: dict[str, Tensor]
    info: StudentInfo | SharpenerInfo
    losses: list[float]
    finished: bool

    def write(self, path: Path) -> None:
        """Write its file, whole or not at all."""
        write_described(path, self.tensors, self.info.metadata())


class Training:
    """One run: a distillation with its loop settings in a run folder."""

    def __init__(
        self,
        distillation: Distillation,
        settings: TrainSettings,
        *,
        root: Path,
        name: str,
        teacher: str,
        accept_changes: Collection[str] = (),
        whole_model: bool = False,
        processes: Processes | None = None,
    ):
        """Describe a run; nothing is written yet.

        Args:
            distillation: teacher with student.
            settings: of the loop.
            root, name: folder of runs with the name of this one; one that is there is gone on with.
            teacher: the teacher in words, for the student file.
            accept_changes: names of settings that may differ from those of the stored run.
            whole_model: give all weights of the student, instead of what changes the base.
            processes: who trains.
        Raises:
            InvalidConfig: a name that is no plain folder name, or all weights of a model that a sharpener leaves alone.
        """
        if whole_model and isinstance(distillation.update, Sharpening):
            raise InvalidConfig(
                "a sharpener changes no weight of the model, so there is no whole student to write; set whole to false"
            )
        self.distillation, self.settings, self.teacher, self.whole_model = distillation, settings, teacher, whole_model
        self.processes = processes or Processes()
        self.base = base_fingerprint(distillation.model)
        described = asdict(distillation.settings) | {"teacher": teacher, "data": _fingerprint(distillation)}
        if self.processes.size > 1:
            described["parallel"] = self.processes.parallel
        self.folder = CheckpointFolder(
            root, name, base=self.base, described=described, accept_changes=accept_changes, processes=self.processes
        )

    def run(
        self,
        on_step: Callable[[StepReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_trajectory: Callable[[int], None] | None = None,
        on_forecast: Callable[[Need], None] | None = None,
    ) -> Student:
        """Train to the end, or until stopped; the student is the moving average of its weights.

        Args:
            on_step, should_stop: as `train` has them.
            on_trajectory: called before the teacher makes a trajectory, with how often it has.
            on_forecast: called before the first step, with the memory that training will take.
        Raises:
            InvalidConfig: it will not fit into the device's memory.
            what `train` raises; the last checkpoint stays.
        """
        distil, settings = self.distillation, self.distillation.settings
        trajectories = TrajectoryCache(
            distil.trajectory,
            self.folder.path / "trajectories",
            examples=(len(distil.grid_S) - 1) * settings.images_per_trajectory,
            cache_size=settings.cache_size,
            reuse=settings.reuse,
            seed=settings.run_seed,
            processes=self.processes,
            on_trajectory=on_trajectory,
        )
        with distil.in_training():
            need = check_memory(distil, self.settings)
            if on_forecast is not None:
                on_forecast(need)
            trained = train(
                distil.update,
                trajectories,
                distil.loss,
                self.settings,
                folder=self.folder,
                on_step=on_step,
                should_stop=should_stop,
                processes=self.processes,
                seed=settings.run_seed,
            )
        with exchanged(distil.update, trained.average):
            update = distil.update.state()
            tensors = (distil.update.merged() if self.whole_model else update) | self._embedder()
        if isinstance(distil.update, Sharpening):
            update = {}
        return Student(tensors, update, self.info(trained.step), trained.losses, trained.finished)

    def _embedder(self) -> dict[str, Tensor]:
        embedder = self.distillation.update.embedder
        weights = {} if embedder is None else embedder.state_dict()
        return {f"{EMBEDDER}{name}": weight.detach().float().cpu().clone() for name, weight in weights.items()}

    def info(self, step: int) -> StudentInfo | SharpenerInfo:
        """What a file of this run says of itself after so many steps."""
        distil = self.distillation
        if distil.fusion is None:
            return self._sharpener_info(step)
        return StudentInfo(
            method=distil.fusion.method,
            mode=FULL if self.whole_model else distil.update.mode,
            guidance_min=distil.settings.guidance_min,
            guidance_max=distil.settings.guidance_max,
            gain=distil.fusion.gain,
            guidance_embedding_scale=distil.fusion.scale,
            guidance_precision=distil.fusion.precision,
            teacher=self.teacher,
            base=self.base,
            step=step,
            pack_version=__version__,
        )

    def _sharpener_info(self, step: int) -> SharpenerInfo:
        distil = self.distillation
        assert isinstance(distil.update, Sharpening)
        sharpener = distil.update.sharpener
        return SharpenerInfo(
            method=distil.settings.method,
            width=sharpener.width,
            hidden=sharpener.hidden,
            heads=sharpener.heads,
            alpha=ALPHA,
            alpha_min=ALPHA_MIN,
            alpha_max=ALPHA_MAX,
            teacher=f"{self.teacher}, w {distil.settings.guidance_max:g}",
            base=self.base,
            step=step,
            pack_version=__version__,
        )


def _fingerprint(distillation: Distillation) -> str:
    """Name the data of a run by the prompts' pooled vectors with the pictures, 16 hex digits."""
    digest = hashlib.sha256()
    for prompts in (distillation.positives, distillation.nulls):
        digest.update(prompts.pooled(range(len(prompts))).float().cpu().contiguous().numpy().tobytes())
    for picture in distillation.pictures:
        digest.update(picture.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

"""One training run on a ComfyUI model, from settings to the student file."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...errors import CheckpointMismatch, InvalidConfig, NotWritten
from ...files.lock_file import locked
from ...files.output_file import check_space, check_target
from ...files.tensor_file import SUFFIX, not_finite, open_tensors
from ...guidance.calibration import Calibration, Measured, typed
from ...guidance.cfg import cfg_scale_of
from ...training.checkpoint import CheckpointFolder
from ...training.loop import StepReport, train
from ...training.loop_settings import TrainSettings
from ...training.processes import Processes
from ...training.run_state import FIRST_LOSS_SCALE
from ...training.settings import OF_THE_STUDENT
from ...training.students.student import RUN_KEY, StudentFile
from ...training.targets import Trajectory
from ...training.trajectory_cache import TrajectoryCache
from ...training.update import check_plain, exchanged
from ..notes import duration, tell
from ..weights import base_fingerprint
from .calibrate import calibrate
from .distillation import Distillation
from .identity import fingerprint_of, identity_of
from .memory_check import MOMENTS, Need, check_memory


@dataclass(frozen=True)
class Result:
    """The student file and the losses of a run.

    Attributes:
        file: the student file, not yet written.
        losses: loss of every step since the start.
        finished: whether all steps are done.
        calibration: of the finished student; None if it was not calibrated or does not reach its teacher.
        measured: the guidance of the finished student beside its teacher's, by increasing w.
    """

    file: StudentFile
    losses: list[float]
    finished: bool
    calibration: Calibration | None = None
    measured: Sequence[Measured] = ()


class Training:
    """One run: a distillation, its loop settings and its checkpoint folder."""

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
        calibration: int = 0,
    ):
        """Set up a run; nothing is written yet.

        Args:
            distillation: teacher and student.
            settings: settings of the loop.
            root, name: folder of runs and the name of this one; an existing run is resumed.
            teacher: description of the teacher, for the student file.
            accept_changes: names of settings that may differ from those of the stored run.
            whole_model: store all weights of the student instead of the change to its base.
            processes: the training processes.
            calibration: number of images per w that the finished student is calibrated with; 0 does not calibrate.
        Raises:
            InvalidConfig: the name is not a plain folder name, or `whole_model` is set for a student that cannot be one
                or for quantised weights.
        """
        if whole_model:
            if why := distillation.student.no_whole_model:
                raise InvalidConfig(f"whole_model is on, but {why}; turn whole_model off")
            network = distillation.network.module
            check_plain(network, [name for name, _ in network.named_parameters()], "whole_model")
        self.distillation, self.settings, self.teacher, self.whole_model = distillation, settings, teacher, whole_model
        self.processes, self.calibration = processes or Processes(), calibration
        self.base = base_fingerprint(distillation.model)
        identity, own = identity_of(distillation), asdict(distillation.settings)
        shaping = {name: value for name, value in own.items() if name not in OF_THE_STUDENT}
        self.of_trajectories = fingerprint_of([self.base, identity, shaping])
        described = own | {"teacher": teacher} | identity
        if self.processes.size > 1:
            described["parallel"] = self.processes.parallel
        self.folder = CheckpointFolder(
            root, name, base=self.base, described=described, accept_changes=accept_changes, processes=self.processes
        )

    def check_target(self, path: Path) -> None:
        """Refuse a path for the student file, before the first step.

        Raises:
            InvalidConfig: the path is no .safetensors file.
            TargetExists: there is a file that this run did not write.
            NotWritten: the folder is read-only.
        """
        if path.suffix != SUFFIX:
            raise InvalidConfig(f"the student file {path.name} does not end with {SUFFIX}; give it this suffix")
        check_target(path, ours=path.is_file() and self.folder.is_of_this_run(_run_of(path)))

    def write(self, result: Result, path: Path) -> None:
        """Write the student file; what `check_target` refuses stays as it is.

        Raises:
            TargetExists, NotWritten: the file cannot be written; the checkpoints of the run are intact.
        """
        self.check_target(path)
        try:
            result.file.write(path, self.folder.run or "")
        except NotWritten as error:
            raise NotWritten(
                f"{error}. The checkpoints in {self.folder.path} are intact: start the run again to write the file"
            ) from error

    def run(
        self,
        on_step: Callable[[StepReport], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_forecast: Callable[[Need], None] | None = None,
    ) -> Result:
        """Train to the end or until stopped; the student is the moving average of its weights.

        Args:
            on_step, should_stop: as in `train`.
            on_forecast: called before the first step, with the memory that training needs.
        Raises:
            InvalidConfig: another process trains this run, or it does not fit into the memory of the device.
            TeEFusionError: as in `train`; the last checkpoint stays.
        """
        distil, student, seed = self.distillation, self.distillation.student, self.distillation.settings.run_seed
        with distil.in_training():
            tell("forecasting the memory of the training")
            need = check_memory(distil, self.settings)
            if need is not None:
                tell(str(need))
                if on_forecast is not None:
                    on_forecast(need)
            with self._alone():
                trained = train(
                    student.update, self._trajectories(), distil.loss, self.settings, folder=self.folder,
                    on_step=on_step, should_stop=should_stop, processes=self.processes, seed=seed,
                    loss_scale=FIRST_LOSS_SCALE if distil.network.dtype == torch.float16 else 1.0,
                )  # fmt: skip
            with exchanged(student.update, trained.average):
                curve, measured = self._calibrated() if trained.finished else (None, [])
                file = self.file(trained.step, "" if curve is None else curve.json())
                return Result(file, trained.losses, trained.finished, curve, measured)

    def _calibrated(self) -> tuple[Calibration | None, list[Measured]]:
        """Calibrate the student in the first process, which writes its file."""
        found: tuple[Calibration | None, list[Measured]] = (None, [])
        if self.calibration and self.distillation.student.has_range:
            with self.processes.all_or_none():
                if self.processes.first:
                    found = calibrate(self.distillation, self.calibration)
        return found

    def check_disk(self) -> None:
        """Tell how much disk space the run takes, before the first step.

        Raises:
            NotWritten: the disk has less.
        """
        distil, cache = self.distillation, self._trajectories()
        weights = sum(weight.numel() for weight in distil.student.update.parameters())
        model = sum(weight.nbytes for weight in distil.network.module.parameters()) if self.whole_model else 0
        checkpoint = (1 + MOMENTS + bool(self.settings.ema_decay)) * torch.float32.itemsize * weights
        needs = {
            "trajectories": cache.disk_bytes(self._made(cache), math.prod(distil.latent_CHW)),
            "checkpoints": (self.folder.keep + 1) * checkpoint,  # the newest is written before the oldest is removed
            "student": model or torch.float16.itemsize * weights,
        }
        try:
            tell(check_space(self.folder.path, needs))
        except NotWritten as error:
            raise NotWritten(
                f"{error}. Free space on this disk, or lower cache_size, images_per_trajectory or rank"
            ) from error

    def _trajectories(self) -> TrajectoryCache:
        settings = self.distillation.settings

        def make(number: int) -> Trajectory:
            return self._trajectory(number, self._made(cache))

        cache = TrajectoryCache(
            make, self.folder.path / "trajectories",
            examples=(len(self.distillation.grid_S) - 1) * settings.images_per_trajectory,
            cache_size=settings.cache_size, reuse=settings.reuse, seed=settings.run_seed, identity=self.of_trajectories,
            processes=self.processes,
        )  # fmt: skip
        return cache

    def _made(self, cache: TrajectoryCache) -> int:
        """Return the number of trajectories of the whole run."""
        loop = self.settings
        draws = loop.steps * loop.gradient_accumulation
        return cache.made((draws - 1) * loop.batch_size * self.processes.size)

    def _trajectory(self, number: int, count: int) -> Trajectory:
        """Return one of a number of trajectories, and tell how far it is."""
        start, name = time.monotonic(), f"trajectory {number + 1} of {count}"
        trajectory = self.distillation.trajectory(number, said=f"the teacher makes {name}")
        if not_finite(trajectory.target_SBCHW):  # if it were stored, every later attempt would end with it too
            raise InvalidConfig(
                f"the teacher makes NaN or infinite values at CFG scale {float(cfg_scale_of(trajectory.w)):.3g}; lower "
                "guidance_max, or run the teacher's model in 32 bits or bfloat16"
            )
        tell(f"{name} took {duration(time.monotonic() - start)}; training goes on")
        return trajectory

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from training the same run during the block."""
        with ExitStack() as stack:
            with self.processes.all_or_none():
                if self.processes.first:
                    path = self.folder.path
                    stack.enter_context(locked(path / "lock", f"run {path.name}"))
            yield

    def file(self, step: int, calibration: str = "") -> StudentFile:
        """Return the file of the current student, after `step` steps."""
        return self.distillation.student.file(
            teacher=self.teacher, base=self.base, step=step, whole_model=self.whole_model, calibration=calibration
        )


def described_calibration(training: Training, trained: Result) -> tuple[str, str]:
    """Return what the calibration of a finished student means for a user: the verdict, and the figures.

    Each is sentences and a space, or empty.
    """
    if not (training.calibration and trained.finished and training.distillation.student.has_range):
        return "", ""
    curve, settings = trained.calibration, training.distillation.settings
    if curve is None:
        reached = "; ".join(f"{one.before():.2f} instead of {one.teacher:.2f}" for one in trained.measured)
        return "Too weak so far, not calibrated: train longer. ", f"CFG scale {reached}. "
    asked = typed(settings.guidance_min, settings.guidance_max)
    verdict = f"Calibrated for w from {curve.typed()}"
    verdict += ". " if curve.typed() == asked else f" of {asked}: train longer for more. "
    figures = ""
    if reference := getattr(trained.file.info, "reference_guidance", 0.0):
        pairs = zip(curve.teacher, curve.inner, strict=True)
        strengths = "; ".join(f"CFG {scale:.2f}: {inner / reference:.2f}" for scale, inner in pairs)
        figures = f"Strength in LoRA loaders for {strengths}. "
    return verdict, figures


def _run_of(path: Path) -> str | None:
    """Return the run that wrote a student file; None for any other file."""
    try:
        return open_tensors(path).metadata().get(RUN_KEY)
    except (CheckpointMismatch, AttributeError):
        return None

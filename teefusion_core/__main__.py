"""Command line of the pack: train, score, convert, prompts, arrange.

It also runs under torchrun and accelerate. It uses the ComfyUI that it is installed in, or the one of COMFYUI_PATH.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import signal
import sys
import time
from contextlib import suppress
from datetime import timedelta
from io import TextIOWrapper
from pathlib import Path
from typing import Any

try:
    import torch
except ModuleNotFoundError:
    sys.exit("TeEFusion: this Python has no torch; run the command with the Python of your ComfyUI")
import torch.distributed as dist

from .errors import InvalidConfig, TeEFusionError
from .evaluation import score_command
from .files.comfyui_location import import_from_comfyui
from .files.text_file import read_text
from .prompts import prompt_command
from .training.loop import StepReport
from .training.processes import leave_together, together

SECONDS_BETWEEN_LINES = 5.0
CONNECTION_LOST = re.compile("gloo|nccl|connection|peer", re.IGNORECASE)
"""In the message of torch's RuntimeError when another process has ended; there is no error type for it."""


def main() -> None:
    """Run a command; exit with a one-line message on an error that the user can fix."""
    parser = argparse.ArgumentParser(prog="python -m teefusion_core", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train the student that a file describes, or resume it")
    command.add_argument("config", type=Path, help="a .toml or .json file; docs/training.md lists all settings")
    score_command.add_commands(commands)
    prompt_command.add_commands(commands)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a Windows console may lack letters of a prompt
            stream.reconfigure(errors="replace")
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except TeEFusionError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        _stop("stopped; run the same command again to resume from the last checkpoint")
    except RuntimeError as error:
        if not (together() and CONNECTION_LOST.search(str(error))):
            raise
        reason = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0]  # without gloo's source file and line
        _stop(f"another process is gone ({reason}); run the same command again to resume from the last checkpoint")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "train":
        _train(arguments.config)
    elif arguments.command in ("prompts", "arrange"):
        {"prompts": prompt_command.prompts, "arrange": prompt_command.arrange}[arguments.command](arguments)
    elif arguments.command == "convert":
        score_command.convert(arguments)
    else:
        import_from_comfyui()
        from .comfy_host.evaluation import scoring

        score_command.score(arguments, scoring.score_file, scoring.score_pictures)


def _stop(message: str) -> None:
    """Exit with a message; of several processes only the first one prints it."""
    # the launcher sends SIGTERM as soon as one process has ended
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    printed = False
    if together():
        with suppress(RuntimeError):  # the process that hosts the store may be gone
            printed = dist.distributed_c10d._get_default_store().add("printed", 1) > 1
    sys.exit(1 if printed else f"TeEFusion: {message}")


def _train(path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # cluster schedulers stop a job with SIGTERM
    _join_process_group()
    config = _read(path)
    import_from_comfyui()
    if not together() or dist.get_rank() == 0:
        _print_notes()
    _train_and_write(config, path.resolve().parent)
    leave_together()


def _train_and_write(config: dict[str, Any], folder: Path) -> None:
    from .comfy_host.training.from_file import training_of
    from .comfy_host.training.run import described_calibration

    training, target = training_of(config, folder)
    trained = training.run(on_step=ProgressLines())
    if training.processes.first:
        training.write(trained, target)
        done = f"student of {trained.file.info.step} steps written to {target}. "
        print("".join((done, *described_calibration(training, trained))).rstrip(), flush=True)


def _print_notes() -> None:
    """Print what a node would show, such as how far the encoding of prompts is; warnings go to stderr."""
    notes = logging.getLogger(f"{__package__}.comfy_host.notes")
    lines, warnings = logging.StreamHandler(sys.stdout), logging.StreamHandler(sys.stderr)
    lines.addFilter(lambda record: record.levelno < logging.WARNING)
    warnings.setLevel(logging.WARNING)
    notes.handlers[:] = [lines, warnings]
    notes.setLevel(logging.INFO)
    notes.propagate = False  # a library may have made the root logger print every line again


def _read(path: Path) -> dict[str, Any]:
    """Read the settings of a training from .toml or .json."""
    try:
        text = read_text(path)
        if path.suffix == ".json":
            config = json.loads(text)
            if not isinstance(config, dict):
                raise InvalidConfig(f"{path} holds a {type(config).__name__}; write an object of sections, as in TOML")
            return config
        try:
            import tomllib
        except ImportError:
            raise InvalidConfig(f"{path} needs Python 3.11 or newer; write the same settings as .json") from None
        return tomllib.loads(text)
    except InvalidConfig:
        raise
    except ValueError as error:
        raise InvalidConfig(
            f"{path} is not valid {path.suffix.lstrip('.') or 'TOML'} ({error}); correct the file"
        ) from error


def _join_process_group() -> None:
    """Initialise torch.distributed if a launcher started several processes."""
    if (
        "WORLD_SIZE" not in os.environ
        and os.environ.get("ACCELERATE_USE_CPU") == "True"
        and "MASTER_ADDR" in os.environ
    ):
        raise InvalidConfig(
            "accelerate starts a single process when it is given --cpu; use --multi_gpu instead, which also works on a "
            "CPU, or use torchrun"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # the others wait while the first one calibrates, which takes as long as sampling some hundred images
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=timedelta(days=1))


class ProgressLines:
    """Prints the progress of a training every few seconds."""

    def __init__(self) -> None:
        self.last_print = time.monotonic()
        self.losses: list[float] = []
        self.rows = 0

    def __call__(self, report: StepReport) -> None:
        self.losses.append(report.loss)
        self.rows += report.rows
        now = time.monotonic()
        if now - self.last_print < SECONDS_BETWEEN_LINES and report.step < report.steps:
            return
        seconds = max(now - self.last_print, 1e-9)
        mean, left = sum(self.losses) / len(self.losses), (report.steps - report.step) * seconds / len(self.losses)
        print(
            f"step {report.step}/{report.steps}  loss {mean:.4f}  {self.rows / seconds:.1f} examples/s"
            f"  {left / 60:.0f} min left",
            flush=True,
        )
        self.last_print, self.rows = now, 0
        self.losses.clear()


if __name__ == "__main__":
    main()

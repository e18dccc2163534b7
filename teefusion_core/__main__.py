"""Train students, judge pictures from the command line.

Runs under torchrun or accelerate launch as well, with the ComfyUI that it is installed in or that COMFYUI_PATH names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
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
from .prompts import prompt_command
from .training.loop import StepReport
from .training.processes import together

SECONDS_BETWEEN_LINES = 5.0
LOST = re.compile("gloo|nccl|connection|peer", re.IGNORECASE)
"""How torch tells that another process is gone, which it has no type of error for."""


def main() -> None:
    """Parse, train, end with one sentence where it cannot go on."""
    parser = argparse.ArgumentParser(prog="python -m teefusion_core", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("train", help="train the student that a file describes; goes on where it stopped")
    command.add_argument("config", type=Path, help="a .toml or .json file; docs/training.md has all of its names")
    score_command.add_commands(commands)
    prompt_command.add_commands(commands)
    arguments = parser.parse_args()
    try:
        _run(arguments)
    except TeEFusionError as error:
        _stop(str(error))
    except KeyboardInterrupt:
        _stop("stopped; the same command goes on from the last checkpoint")
    except RuntimeError as error:
        if not (together() and LOST.search(str(error))):
            raise
        said = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0]  # without its place in the source of gloo
        _stop(f"another process is gone ({said}); the same command goes on from the last checkpoint")


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "train":
        _train(arguments.config)
    elif arguments.command in ("prompts", "arrange"):
        {"prompts": prompt_command.prompts, "arrange": prompt_command.arrange}[arguments.command](arguments)
    else:
        import_from_comfyui()
        from .comfy_host.evaluation import scoring

        if arguments.command == "score":
            score_command.score(arguments, scoring.score_file, scoring.score_pictures)
        else:
            score_command.convert(arguments, scoring.convert)


def _stop(message: str) -> None:
    """End with a sentence, of which several processes say one together."""
    # the launcher ends us as soon as another has ended
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    said = False
    if together():
        with suppress(RuntimeError):  # whoever keeps the count is gone
            said = dist.distributed_c10d._get_default_store().add("said", 1) > 1
    sys.exit(1 if said else f"TeEFusion: {message}")


def _train(path: Path) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # schedulers ask like this, where a user presses Ctrl-C
    _join()
    config = _read(path)
    import_from_comfyui()
    from .comfy_host.training.from_file import training_of

    training, target = training_of(config, path.resolve().parent)
    lines, first = Lines(), training.processes.first
    trained = training.run(
        on_step=lines,
        on_trajectory=lines.on_trajectory if first else None,
        on_forecast=lines.on_forecast if first else None,
    )
    if first:
        trained.file.write(target)
        print(f"student of {trained.file.info.step} steps written to {target}", flush=True)
    if together():
        dist.barrier()  # who leaves while another writes pulls the connection from under it
        dist.destroy_process_group()


def _read(path: Path) -> dict[str, Any]:
    """Read the file that describes a training."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.loads(text)
        try:
            import tomllib
        except ImportError:
            raise InvalidConfig("reading .toml needs Python 3.11 or later; give the same as .json") from None
        return tomllib.loads(text)
    except OSError as error:
        raise InvalidConfig(
            f"{path} cannot be read ({error.strerror}); give the file that describes the run"
        ) from error
    except ValueError as error:
        raise InvalidConfig(f"{path} is no valid {path.suffix.lstrip('.') or 'file'}: {error}") from error


def _join() -> None:
    """Meet the other processes, where a launcher started several."""
    if (
        "WORLD_SIZE" not in os.environ
        and os.environ.get("ACCELERATE_USE_CPU") == "True"
        and "MASTER_ADDR" in os.environ
    ):
        raise InvalidConfig(
            "accelerate was asked for several processes with --cpu, of which it starts one; "
            "give it --multi_gpu in place of --cpu, which starts them on a CPU too, or use torchrun"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


class Lines:
    """Says now and then how far it is."""

    def __init__(self) -> None:
        self.told, self.begun = time.monotonic(), False
        self.losses: list[float] = []
        self.rows = 0

    def on_forecast(self, need: object) -> None:
        """Say what memory the run will take."""
        print(need, flush=True)

    def on_trajectory(self, number: int) -> None:
        """Say what the wait is for, before the first step."""
        if not self.begun:
            print(f"the teacher paints, trajectory {number + 1}", flush=True)

    def __call__(self, report: StepReport) -> None:
        self.begun = True
        self.losses.append(report.loss)
        self.rows += report.rows
        now = time.monotonic()
        if now - self.told < SECONDS_BETWEEN_LINES and report.step < report.steps:
            return
        mean, pace = sum(self.losses) / len(self.losses), len(self.losses) / max(now - self.told, 1e-9)
        left = (report.steps - report.step) / pace
        print(
            f"step {report.step}/{report.steps}  loss {mean:.4f}  {self.rows / max(now - self.told, 1e-9):.1f} rows/s"
            f"  {left / 60:.0f} min left",
            flush=True,
        )
        self.told, self.rows = now, 0
        self.losses.clear()


if __name__ == "__main__":
    main()

"""Trains what a list of jobs says, as one of the processes that a launcher starts.

    worker.py COMFYUI FOLDER

FOLDER/jobs-<processes>.json has the jobs, FOLDER/<job>-<processes>-<rank>.json takes what came of each.
"""

import json
import os
import shutil
import sys
import warnings
from datetime import timedelta
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [sys.argv[1], str(REPO)]

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from digests import digest_of  # noqa: E402

from teefusion_core.comfy_host.training.from_file import training_of  # noqa: E402
from teefusion_core.errors import TeEFusionError  # noqa: E402
from teefusion_core.training.processes import leave_together  # noqa: E402


def perform(job, folder, rank):
    """Train; return all that two runs can differ in."""
    training, _ = training_of(job["config"], folder)
    update, held = training.distillation.student.update, []
    if rank == job.get("broken"):
        training.distillation.trajectory = None  # a teacher that cannot be called

    def should_stop():
        held.append(sum(getattr(p, "_local_tensor", p).numel() for p in update.parameters()))

    try:
        student = training.run(should_stop=should_stop)
    except (TeEFusionError, TypeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "losses": student.losses, "student": digest_of(student.file.tensors),
        "module": digest_of({name: weight.detach() for name, weight in update.named_parameters()}), "held": max(held),
        "all": sum(weight.numel() for weight in update.parameters()), "steps": len(held),
    }  # fmt: skip


def branch(runs, begun, name, step):
    """Have another run of that name, which is at a step of one that went on."""
    shutil.copytree(runs / begun, runs / name)
    for later in (runs / name).glob("step-*"):
        if int(later.name.removeprefix("step-")) > step:
            shutil.rmtree(later)


def main():
    folder, size = Path(sys.argv[2]), int(os.environ.get("WORLD_SIZE", "1"))
    if size > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank() if size > 1 else 0
    torch.set_num_threads(1)
    warnings.filterwarnings("error", module="teefusion_core")
    for job in json.loads((folder / f"jobs-{size}.json").read_text()):
        if "branch" in job and rank == 0:
            branch(folder / "runs", *job["branch"])
        if size > 1:
            dist.barrier()
        found = perform(job, folder, rank)
        (folder / f"{job['name']}-{size}-{rank}.json").write_text(json.dumps(found))
    leave_together()


if __name__ == "__main__":
    main()

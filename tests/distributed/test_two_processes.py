"""Two processes that a launcher really starts, with gloo on a CPU, on the embedded model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from .digests import digest_of

REPO = Path(__file__).resolve().parent.parent.parent
WORKER = Path(__file__).with_name("worker.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PROMPTS = "a red circle on white\na blue square left of a green ring\ntwo tiny cyan triangles on black\n"
STEPS, LATE = 20, 15


LORA = {"method": "guidance lora", "initial_gain_ratio": None}


def config(name, *, batch_size=1, parallel=None, distillation=None, **train):
    sharing = {"parallel": parallel} if parallel else {}
    train = {
        "steps": STEPS, "batch_size": batch_size, "gradient_accumulation": 2, "learning_rate": 1e-3, "save_every": 5,
        **sharing, **train,
    }  # fmt: skip
    distil = {
        "teacher_steps": 4, "images_per_trajectory": 2, "cache_size": 2, "initial_gain_ratio": 0.25,
        "guidance_max": 6.0, "guidance_margin": 0.0, "guidance_error_weight": 1.0,
        "mixed_precision": False,  # which rounds two rows together and two apart differently
    }  # fmt: skip
    distil |= {"trainable": "lora on modulation", "rank": 3} | (distillation or {})
    distil, compared = {key: value for key, value in distil.items() if value is not None}, int(bool(distillation))
    return {
        "model": {"demo_model": "base"}, "data": {"prompts": "prompts.txt", "width": 64, "height": 64},
        "distillation": distil, "training": train,
        "output": {
            "name": name, "accept_changes": ["parallel"] if parallel else [], "calibration": compared,
        },
    }  # fmt: skip


def started(command, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    environment |= {"COMFYUI_PATH": str(comfyui())}
    return subprocess.Popen(
        [*command, *map(str, arguments)], cwd=REPO, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process):
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def comfyui():
    path = Path(os.environ.get("COMFYUI_PATH") or REPO / ".host" / "ComfyUI")
    assert (path / "comfy").is_dir(), f"no ComfyUI in {path}; set COMFYUI_PATH"
    return path


JOBS = {
    1: [
        {"name": "plain", "config": config("one", batch_size=2)},
        {"name": "lora", "config": config("lora", batch_size=2, distillation=LORA)},
    ],
    2: [
        {"name": "ddp", "config": config("ddp", parallel="ddp")},
        {"name": "fsdp", "config": config("fsdp", parallel="fsdp")},
        {"name": "ddp-then-fsdp", "branch": ["ddp", "a", LATE], "config": config("a", parallel="fsdp")},
        {"name": "fsdp-then-ddp", "branch": ["fsdp", "b", LATE], "config": config("b", parallel="ddp")},
        {"name": "lora-fsdp", "config": config("lora-fsdp", parallel="fsdp", distillation=LORA)},
        {"name": "ill", "config": config("ill"), "broken": 1},
    ],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of every job, by its name, for every process."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "prompts.txt").write_text(PROMPTS)
    for size, jobs in JOBS.items():
        (folder / f"jobs-{size}.json").write_text(json.dumps(jobs))
    for process in [started(python, WORKER, comfyui(), folder) for python in ([sys.executable], TORCHRUN)]:
        code, _, err = ended(process)
        assert code == 0, err
    return {
        job["name"]: [json.loads((folder / f"{job['name']}-{size}-{rank}.json").read_text()) for rank in range(size)]
        for size, jobs in JOBS.items()
        for job in jobs
    }


@pytest.mark.parametrize(("alone", "together"), [("plain", "ddp"), ("plain", "fsdp"), ("lora", "lora-fsdp")])
def test_two_processes_learn_what_one_does(found, alone, together, record_property):
    [one], two = found[alone], found[together]
    worst = max(abs(a - b) for a, b in zip(one["losses"], two[0]["losses"], strict=True))
    record_property("largest difference of a loss", worst)
    assert len(one["losses"]) == STEPS and worst < 1e-6
    assert two[0]["losses"] == two[1]["losses"]
    assert two[0]["student"] == two[1]["student"] and two[0]["module"] == two[1]["module"], "whole in every process"


def test_a_process_holds_a_share_of_what_is_trained(found):
    assert all(part["held"] == part["all"] for part in found["ddp"])
    first, second = found["fsdp"]
    assert first["held"] + second["held"] == first["all"] and second["held"] > 0.3 * first["all"]


@pytest.mark.parametrize(("begun", "ended"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_run_resumes_the_other_way(found, begun, ended):
    whole, parts = found[begun][0], found[f"{begun}-then-{ended}"][0]
    assert parts["steps"] == STEPS - LATE and len(parts["losses"]) == STEPS
    assert parts["losses"][:LATE] == whole["losses"][:LATE]
    assert max(abs(a - b) for a, b in zip(whole["losses"], parts["losses"], strict=True)) < 1e-6


def test_what_one_process_cannot_do_stops_both(found):
    first, second = found["ill"]
    assert second["error"].startswith("TypeError: 'NoneType'")
    assert first["error"].startswith("ProcessFailed: ") and "'NoneType'" in first["error"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "prompts.txt").write_text(PROMPTS)
    return folder


def train(folder, **settings):
    path = folder / f"{settings['name']}.json"
    path.write_text(json.dumps(config(**settings)))
    return started(TORCHRUN, "-m", "teefusion_core", "train", path)


def process_of(rank, path):
    """The process of a rank, found by the file that it trains."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            mine = str(path) in (entry / "cmdline").read_text()
            if mine and f"\0RANK={rank}\0" in (entry / "environ").read_text():
                return int(entry.name)
        except OSError:  # gone, or of somebody else
            continue
    raise AssertionError(f"no process of rank {rank}")


def test_killed_they_resume_to_the_same_student(found, folder):
    options = {"name": "killed", "parallel": "fsdp", "save_every": 1}
    victim = train(folder, **options)
    deadline = time.monotonic() + 120
    while not list((folder / "runs" / "killed").glob("step-0000000[4-9]")):
        assert time.monotonic() < deadline and victim.poll() is None, victim.stderr.read()
        time.sleep(0.02)
    os.kill(process_of(1, folder / "killed.json"), signal.SIGKILL)
    killed = time.monotonic()
    code, _, err = ended(victim)
    assert code != 0 and time.monotonic() - killed < 30
    assert err.count("TeEFusion: ") == 1
    assert not (folder / "killed.safetensors").exists()
    code, out, err = ended(train(folder, **options))
    assert code == 0, err
    assert out.count("killed.safetensors") == 1
    with safe_open(folder / "killed.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
    assert digest_of(tensors) == found["fsdp"][0]["student"], "as if nothing had happened"


def test_what_is_wrong_is_reported_once(folder):
    path = folder / "broken.json"
    path.write_text("{")
    code, _, err = ended(started(TORCHRUN, "-m", "teefusion_core", "train", path))
    assert code != 0
    assert err.count("TeEFusion: ") == 1 and str(path) in err

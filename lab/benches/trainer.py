"""The trainer's speed relative to its parts and to ComfyUI's trainer, and its memory relative to the forecast.

Whole steps and their parts follow one another in one process, so that other work on the machine slows each alike. A
round gives one ratio. Memory is measured in separate processes.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from runner.stop import say

from ._cost import quartiles, ratio_text
from ._training_parts import PASSES, Parts, memory

ROUNDS = 5
BATCH, RANK = 32, 16
STOCK_BATCHES, STOCK_STEPS = (1, 4), (3, 13)
LIMITS = {"whole / parts": 1.05, "cached / online": 2.5, "data": 0.02, "ours / stock": 1.0, "forecast": 0.15,
          "peak": 1.15}  # fmt: skip
MEMORY: dict[str, dict[str, Any]] = {
    "LoRA": {"batch": 32, "rank": 16, "images_per_trajectory": 4},
    "LoRA, checkpointing": {"batch": 64, "rank": 64, "images_per_trajectory": 4, "gradient_checkpointing": True},
    "everything": {"batch": 16, "rank": 1, "images_per_trajectory": 4, "trainable": "everything"},
    "LoRA, teacher of many rows": {"batch": 4, "rank": 16, "images_per_trajectory": 64},
}
MIB = 2**20


def measure() -> dict[str, Any]:
    return {
        "settings": {"batch": BATCH, "rank": RANK, "rounds": ROUNDS, "teacher_passes": PASSES},
        "limits": LIMITS,
        "steps": _steps(),
        "stock": [_beside_stock(batch) for batch in STOCK_BATCHES],
        "memory": [_forecast_row(name) for name in MEMORY],
        "peaks": [_peak_beside_stock(batch) for batch in STOCK_BATCHES],
    }


def _steps() -> dict[str, Any]:
    """Return the seconds per step with the teacher and with stored trajectories, and the sums of their parts."""
    parts = Parts(batch=BATCH, rank=RANK)
    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        cached = parts.trajectories(Path(folder) / "cached", cache_size=2, reuse=0)
        example = cached.next(BATCH)
        for number in range(ROUNDS + 1):
            replayed = parts.trained(cached)
            online = parts.trained(parts.trajectories(Path(folder) / f"online{number}", cache_size=1, reuse=1))
            found = {name: sum(report.seconds for report in reports)
                     for name, reports in (("cached", replayed), ("online", online))}  # fmt: skip
            found["data"] = sum(report.data_seconds for report in replayed)
            found["teacher"], found["unguided"] = parts.teacher_seconds()
            found["student"], found["optimizer"] = parts.student_seconds(example)
            rounds.append(found)
            say(f"round {number}: {found}")
    rounds = rounds[1:]  # the first one warms up
    of_student = [r["student"] + r["optimizer"] for r in rounds]
    of_teacher = [r["teacher"] + r["unguided"] for r in rounds]
    ratios = {
        "cached / parts": [r["cached"] / student for r, student in zip(rounds, of_student, strict=True)],
        "online / parts": [r["online"] / sum(parts)
                           for r, *parts in zip(rounds, of_student, of_teacher, strict=True)],
        "online / cached": [r["online"] / r["cached"] for r in rounds],
        "data / cached": [r["data"] / r["cached"] for r in rounds],
    }  # fmt: skip
    steps = parts.loop.steps
    return {
        "ms": {name: round(1000 * statistics.median(r[name] for r in rounds) / steps, 2) for name in rounds[0]},
        "ratios": {name: quartiles(values) for name, values in ratios.items()},
    }


def _beside_stock(batch: int) -> dict[str, Any]:
    """Compare our step without teacher with one of ComfyUI's LoRA trainer, at the same batch size and rank."""
    parts, ours, stock = Parts(batch=batch, rank=RANK, images_per_trajectory=batch), [], []
    with tempfile.TemporaryDirectory() as folder:
        cached = parts.trajectories(Path(folder), cache_size=2, reuse=0)
        for _ in range(ROUNDS + 1):
            few, many = (parts.stock(steps, batch) for steps in STOCK_STEPS)
            stock.append((many - few) / (STOCK_STEPS[1] - STOCK_STEPS[0]))
            ours.append(statistics.fmean(report.seconds for report in parts.trained(cached)))
    ratio = quartiles([a / b for a, b in zip(ours[1:], stock[1:], strict=True)])
    say(f"batch {batch}: ours / stock {ratio}")
    ms = {name: round(1000 * statistics.median(s[1:]), 2) for name, s in (("ours_ms", ours), ("stock_ms", stock))}
    return {"batch": batch, **ms, "ratio": ratio}


def _forecast_row(name: str) -> dict[str, Any]:
    found = memory(what="ours", **MEMORY[name])
    row = {"case": name, **MEMORY[name], **found, "error": round(found["foretold"] / found["taken"] - 1, 4)}
    say(str(row))
    return row


def _peak_beside_stock(batch: int) -> dict[str, Any]:
    same = {"batch": batch, "rank": RANK, "images_per_trajectory": batch}
    ours, stock = (memory(what=what, **same)["taken"] for what in ("ours", "stock"))
    row = {"batch": batch, "ours": ours, "stock": stock, "ratio": round(ours / stock, 4)}
    say(str(row))
    return row


def table(result: dict[str, Any]) -> list[list[str]]:
    ms, ratios = result["steps"]["ms"], result["steps"]["ratios"]
    head = ["trajectories", "whole step", "teacher", "unguided pass", "student", "optimizer", "whole / parts",
            "waits for data"]  # fmt: skip
    student = [f"{ms['student']:.0f} ms", f"{ms['optimizer']:.1f} ms"]
    teacher = [f"{ms['teacher']:.0f} ms", f"{ms['unguided']:.0f} ms"]
    waits = f"{100 * ratios['data / cached']['median']:.1f} %"
    return [
        head,
        ["made as needed", f"{ms['online']:.0f} ms", *teacher, *student, ratio_text(ratios["online / parts"], 2), ""],
        ["on disk", f"{ms['cached']:.0f} ms", "", "", *student, ratio_text(ratios["cached / parts"], 2), waits],
        ["made / on disk", ratio_text(ratios["online / cached"], 2), "", "", "", "", "", ""],
    ]


def stock_table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["batch", "our step", "Train LoRA", "time", "our memory", "Train LoRA's", "memory"]]
    for time, peak in zip(result["stock"], result["peaks"], strict=True):
        cells = [str(time["batch"]), *(f"{time[name]:.0f} ms" for name in ("ours_ms", "stock_ms"))]
        cells += [ratio_text(time["ratio"], 2), *(f"{peak[name] / MIB:.0f} MiB" for name in ("ours", "stock"))]
        lines.append([*cells, f"{peak['ratio']:.2f}"])
    return lines


def memory_table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["trained", "batch", "rank", "images_per_trajectory", "foretold", "taken", "difference"]]
    for row in result["memory"]:
        cells = [row["case"], *(str(row[name]) for name in ("batch", "rank", "images_per_trajectory"))]
        cells += [f"{row[name] / MIB:.0f} MiB" for name in ("foretold", "taken")]
        lines.append([*cells, f"{100 * row['error']:+.0f} %"])
    return lines

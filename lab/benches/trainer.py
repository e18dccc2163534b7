"""What a training step costs beside its parts, beside ComfyUI's own trainer; what memory it takes beside its forecast.

Whole steps with their parts follow one another in one process, so that whatever else the machine does falls on each
alike; a round gives one ratio. Memory is that of processes of their own.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from runner.stop import say

from ._memory import peaks
from ._timing import quartiles
from ._training import PASSES, Parts

ROUNDS = 5
BATCH, RANK = 32, 16
STOCK_BATCHES, STOCK_STEPS = (1, 4), (3, 13)
LIMITS = {
    "whole / parts": 1.05,
    "cached / online": 2.5,
    "data": 0.02,
    "ours / stock": 1.0,
    "forecast": 0.15,
    "peak": 1.15,
}
MEMORY: dict[str, dict[str, Any]] = {
    "LoRA": dict(batch=32, rank=16, images_per_trajectory=4),
    "LoRA, checkpointing": dict(batch=64, rank=64, images_per_trajectory=4, gradient_checkpointing=True),
    "everything": dict(batch=16, rank=1, images_per_trajectory=4, trainable="everything"),
    "LoRA, teacher of many rows": dict(batch=4, rank=16, images_per_trajectory=64),
}
MIB = 2**20


def measure() -> dict[str, Any]:
    """Return steps in parts, the comparison with the stock trainer, memory."""
    return {
        "settings": {"batch": BATCH, "rank": RANK, "rounds": ROUNDS, "teacher_passes": PASSES},
        "limits": LIMITS,
        "steps": _steps(),
        "stock": [_beside_stock(batch) for batch in STOCK_BATCHES],
        "memory": [_foretold(name) for name in MEMORY],
        "peaks": [_peak_beside_stock(batch) for batch in STOCK_BATCHES],
    }


def _steps() -> dict[str, Any]:
    """Seconds per step with the teacher at work and with stored trajectories, beside the sum of their parts."""
    parts = Parts(batch=BATCH, rank=RANK)
    steps, rounds = parts.loop.steps, []
    with tempfile.TemporaryDirectory() as folder:
        cached = parts.trajectories(Path(folder) / "cached", cache_size=2, reuse=0)
        example = cached.next(BATCH)
        for number in range(ROUNDS + 1):
            replayed = parts.trained(cached)
            online = parts.trained(parts.trajectories(Path(folder) / f"online{number}", cache_size=1, reuse=1))
            teacher, unguided = parts.teacher_seconds()
            student, optimizer = parts.student_seconds(example)
            alone = {"teacher": teacher, "unguided": unguided, "student": student, "optimizer": optimizer}
            rounds.append(
                {
                    "cached": sum(report.seconds for report in replayed),
                    "online": sum(report.seconds for report in online),
                    "data": sum(report.data_seconds for report in replayed),
                    **alone,
                }
            )
            say(f"round {number}: {rounds[-1]}")
    rounds = rounds[1:]  # the first one warms up
    ratios = {
        "cached / parts": [r["cached"] / (r["student"] + r["optimizer"]) for r in rounds],
        "online / parts": [
            r["online"] / (r["teacher"] + r["unguided"] + r["student"] + r["optimizer"]) for r in rounds
        ],
        "online / cached": [r["online"] / r["cached"] for r in rounds],
        "data / cached": [r["data"] / r["cached"] for r in rounds],
    }
    return {
        "ms": {name: round(1000 * statistics.median(r[name] for r in rounds) / steps, 2) for name in rounds[0]},
        "ratios": {name: quartiles(values) for name, values in ratios.items()},
    }


def _beside_stock(batch: int) -> dict[str, Any]:
    """Our step without teacher beside one of ComfyUI's LoRA trainer, at the same batch and rank."""
    parts, ours, stock = Parts(batch=batch, rank=RANK, images_per_trajectory=batch), [], []
    with tempfile.TemporaryDirectory() as folder:
        cached = parts.trajectories(Path(folder), cache_size=2, reuse=0)
        for _ in range(ROUNDS + 1):
            few, many = (parts.stock(steps, batch) for steps in STOCK_STEPS)
            stock.append((many - few) / (STOCK_STEPS[1] - STOCK_STEPS[0]))
            ours.append(statistics.fmean(report.seconds for report in parts.trained(cached)))
    ratios = [a / b for a, b in zip(ours[1:], stock[1:], strict=True)]
    say(f"batch {batch}: ours / stock {quartiles(ratios)}")
    return {
        "batch": batch,
        "ours_ms": round(1000 * statistics.median(ours[1:]), 2),
        "stock_ms": round(1000 * statistics.median(stock[1:]), 2),
        "ratio": quartiles(ratios),
    }


def _foretold(name: str) -> dict[str, Any]:
    found = peaks(what="ours", **MEMORY[name])
    row = {"case": name, **MEMORY[name], **found, "error": round(found["foretold"] / found["taken"] - 1, 4)}
    say(str(row))
    return row


def _peak_beside_stock(batch: int) -> dict[str, Any]:
    ours, stock = (
        peaks(what=what, batch=batch, rank=RANK, images_per_trajectory=batch)["taken"] for what in ("ours", "stock")
    )
    row = {"batch": batch, "ours": ours, "stock": stock, "ratio": round(ours / stock, 4)}
    say(str(row))
    return row


def _ratio(found: dict[str, float], digits: int = 2) -> str:
    return f"{found['median']:.{digits}f} ({found['q1']:.{digits}f} to {found['q3']:.{digits}f})"


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per kind of step."""
    ms, ratios = result["steps"]["ms"], result["steps"]["ratios"]
    head = [
        "trajectories",
        "whole step",
        "teacher",
        "unguided pass",
        "student",
        "optimizer",
        "whole / parts",
        "waits for data",
    ]
    student = [f"{ms['student']:.0f} ms", f"{ms['optimizer']:.1f} ms"]
    teacher = [f"{ms['teacher']:.0f} ms", f"{ms['unguided']:.0f} ms"]
    waits = f"{100 * ratios['data / cached']['median']:.1f} %"
    return [
        head,
        ["made as needed", f"{ms['online']:.0f} ms", *teacher, *student, _ratio(ratios["online / parts"]), ""],
        ["on disk", f"{ms['cached']:.0f} ms", "", "", *student, _ratio(ratios["cached / parts"]), waits],
        ["made / on disk", _ratio(ratios["online / cached"]), "", "", "", "", "", ""],
    ]


def stock_table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per batch."""
    lines = [["batch", "our step", "Train LoRA", "time", "our memory", "Train LoRA's", "memory"]]
    for time, peak in zip(result["stock"], result["peaks"], strict=True):
        cells = [str(time["batch"]), f"{time['ours_ms']:.0f} ms", f"{time['stock_ms']:.0f} ms", _ratio(time["ratio"])]
        cells += [f"{peak[name] / MIB:.0f} MiB" for name in ("ours", "stock")] + [f"{peak['ratio']:.2f}"]
        lines.append(cells)
    return lines


def memory_table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per setting."""
    lines = [["trained", "batch", "rank", "images_per_trajectory", "foretold", "taken", "difference"]]
    for row in result["memory"]:
        cells = [row["case"], *(str(row[name]) for name in ("batch", "rank", "images_per_trajectory"))]
        cells += [f"{row[name] / MIB:.0f} MiB" for name in ("foretold", "taken")]
        lines.append([*cells, f"{100 * row['error']:+.0f} %"])
    return lines

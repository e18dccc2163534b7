"""The report: one HTML file with tables, plots, pictures in it, readable offline, without scripts."""

from __future__ import annotations

import base64
import os
from html import escape
from pathlib import Path
from typing import Any

from runner.places import ROOT

from . import _claims, _pictures, _plots, _rivals
from ._report import RESULTS

PAGE = RESULTS / "report.html"
Rows = list[list[str]]
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1f; --paper: #fdfdfc; --line: #d8d8dc; --soft: #f0f0f2; --dim: #60606a;
  --good: #0b6b35; --bad: #a4161a; --open: #7a5c00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --paper: #17181b; --line: #3a3b41; --soft: #222328;
  --dim: #a0a0aa; --good: #67d391; --bad: #ff8f8f; --open: #e6c35c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p, li { max-width: 46rem; } .dim { color: var(--dim); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { background: var(--soft); } td { white-space: nowrap; }
.claims td:nth-child(2), .claims td:nth-child(3) { white-space: normal; }
.holds { color: var(--good); font-weight: 600; } .does.not.hold { color: var(--bad); font-weight: 600; }
.undecided { color: var(--open); font-weight: 600; }
figure { margin: 1rem 0; } figcaption { color: var(--dim); font-size: 13px; max-width: 46rem; }
.plot { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .6rem; display: inline-block;
  max-width: 100%; } .plot svg { max-width: 100%; height: auto; display: block; }
.strip { width: 544px; max-width: none; display: block; image-rendering: pixelated; }
code { font-size: 12px; }
"""
PLOTS = {
    "scores": "Share of pictures that are all right, by method.",
    "guidance": "The same over effective guidance. What lies above the black line is more than stronger guidance.",
    "sweep": "Figure 5a: score by w. Teachers are dashed.",
    "taught": "Table 4 as a plot: students over their teachers.",
    "losses": "Figure 5b: losses of the trainings; scores of the checkpoints that they kept.",
    "velocities": "Agreement with the teacher's velocity along its own path, by step.",
    "embedding": "Figure 6: G(psi(scale w)) over w, as the base has it, then as students have it.",
}


def report(result: dict[str, Any]) -> Path:
    """Write the report, whole or not at all; return its path inside the repository."""
    part = PAGE.with_suffix(".tmp")
    part.write_text(page(result, _pictures.strips() if _pictures.SHEET.is_file() else {}), encoding="utf-8")
    os.replace(part, PAGE)
    return PAGE.relative_to(ROOT)


def page(result: dict[str, Any], strips: dict[str, bytes]) -> str:
    """Return the HTML of a result with its strips of pictures."""
    drawn = _plots.plots(result)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>TeEFusion against its rivals</title><style>{STYLE}</style></head><body>",
        *_head(result),
        _table(_rivals.settings_table(result)),
        *_section("The paper's claims", _claims.__doc__, _claims_table(result)),
        *_section("Table 1: methods by what prompts claim", _rivals.table.__doc__, _table(_rivals.table(result))),
        _plot(drawn, "scores"),
        *_section("What the pictures are like", _rivals.pictures_table.__doc__, _table(_rivals.pictures_table(result))),
        *_section("At matched guidance", _rivals.matched_table.__doc__, _table(_rivals.matched_table(result))),
        _plot(drawn, "guidance"),
        *_section("Table 3: ablation", _rivals.ablation_table.__doc__, _table(_rivals.ablation_table(result))),
        *_section(
            "Table 4: teachers with students", _rivals.teacher_table.__doc__, _table(_rivals.teacher_table(result))
        ),
        _plot(drawn, "taught"),
        *_section("Figure 5a: strength", _rivals.sweep_table.__doc__, _table(_rivals.sweep_table(result))),
        _plot(drawn, "sweep"),
        *_section("Figure 5b: training", _rivals.curve_table.__doc__, _table(_rivals.curve_table(result))),
        _table(_rivals.checkpoint_table(result)),
        _plot(drawn, "losses"),
        *_section("Where the gap comes from", _rivals.diagnosis_table.__doc__, _table(_rivals.diagnosis_table(result))),
        *_section("Velocities", _rivals.velocity_table.__doc__, _table(_rivals.velocity_table(result))),
        _plot(drawn, "velocities"),
        *_section("Figure 6: the embedding of w", "", _plot(drawn, "embedding")),
        *_section("Another sampler", _rivals.sampler_table.__doc__, _table(_rivals.sampler_table(result))),
        *_section("Pictures", "The same prompts from the same noise, students of seed 0.", _pictures_table(strips)),
        _list(result.get("shown", []) if strips else []),
        *_missing(result),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _head(result: dict[str, Any]) -> list[str]:
    settings, machine = result["settings"], result.get("machine", {})
    told = ", ".join(f"{name} {value}" for name, value in machine.items())
    return [
        "<h1>TeEFusion against its rivals, on a model small enough to check</h1>",
        f"<p>{settings['prompts']} prompts that training never saw, {settings['steps']} steps, the same noise for "
        "every method. The world is one of coloured shapes, so a program judges exactly whether a picture shows what "
        "its prompt says. Intervals are 95 % of a bootstrap over prompts, over students where there are several, the "
        "same draws for all methods. The numbers are about methods at toy size: they say nothing about the pictures "
        "of a large model.</p>",
        f'<p class="dim">Made by <code>python3 scripts/bench.py tables</code> in {result["minutes"]:g} minutes: '
        f"{escape(told)}.</p>",
    ]


def _section(title: str, text: str | None, *parts: str) -> list[str]:
    # the docstring says on the page what it says in the code
    told = [f"<p>{escape(' '.join(block.split()))}</p>" for block in (text or "").split("\n\n") if block.strip()]
    return [f"<h2>{escape(title)}</h2>", *(block for block in told if "Shapes:" not in block), *parts]


def _table(rows: Rows, kind: str = "") -> str:
    if len(rows) < 2:
        return '<p class="dim">Nothing of this kind was there to measure.</p>'
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows[1:])
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>\n{body}</table></div>'


def _claims_table(result: dict[str, Any]) -> str:
    text = _table(_claims.table(result), "claims")
    for verdict in ("holds", "does not hold", "undecided"):
        text = text.replace(f"<td>{verdict}</td>", f'<td class="{verdict}">{verdict}</td>')
    return text


def _plot(drawn: dict[str, str], name: str) -> str:
    if name not in drawn:
        return ""
    return f'<figure><div class="plot">{drawn[name]}</div><figcaption>{escape(PLOTS[name])}</figcaption></figure>'


def _pictures_table(strips: dict[str, bytes]) -> str:
    rows = []
    for name, png in strips.items():
        data = base64.b64encode(png).decode()
        image = f'<img class="strip" alt="{escape(name)}" src="data:image/png;base64,{data}">'
        rows.append(f"<tr><td>{escape(name)}</td><td>{image}</td></tr>")
    return f'<div class="scroll"><table>{"".join(rows)}</table></div>' if rows else ""


def _list(texts: list[str]) -> str:
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f"<p>Prompts from left to right:</p><ol>{items}</ol>" if items else ""


def _missing(result: dict[str, Any]) -> list[str]:
    if not result["missing"]:
        return []
    rows = [[row["student"], row["command"]] for row in result["missing"]]
    text = (
        "They were not there when this was measured; each can be trained by its command, then measured with the rest."
    )
    return _section("Students that are missing", text, _table([["student", "trained by"], *rows]))

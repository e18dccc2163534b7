"""The tables of the paper, from the rows that were measured."""

from __future__ import annotations

import statistics
from typing import Any

from ._arms import BASE, DICE, HEADLINE, MATCHED, SPLIT, TEACHER, UNTRAINED
from ._report import unpacked
from ._scores import Group, at, estimate, groups, headline, mean, named, own_best, strengths, values

Rows = list[list[str]]
CATEGORIES = {"global": "background", "entity": "entity", "attribute": "attribute", "relation": "relation",
              "other": "count"}  # fmt: skip
"""Groups of claims that the judge tells apart, as a reader calls them."""


def table(result: dict[str, Any]) -> Rows:
    """Share of pictures that are right in each kind of claim, with the cost of a picture.

    All at w 2, or what a method has in its place; the last columns are at the strength that is best for each method,
    chosen on the other half of the prompts.
    """
    head = ["method", "students", "strength", "passes/step", "ms/picture", *CATEGORIES.values(), "all right (95 %)",
            "at own best (95 %)", "own best"]  # fmt: skip
    lines = [head]
    for group in _shown(result):
        main = headline(group)
        shares = [f"{float(values(main, name).nanmean()):.3f}" for name in CATEGORIES]
        best_KN, chosen = own_best(group)
        best = "" if len(strengths(group)) == 1 else _interval(mean(best_KN))
        lines.append([
            named(group), _count(main), _strength(main[0]), f"{main[0]['passes']:.3g}",
            f"{statistics.median(row['milliseconds'] for row in main):.0f}", *shares, _interval(mean(values(main))),
            best, " / ".join(f"{value:g}" for value in sorted(set(chosen))) if best else "",
        ])  # fmt: skip
    return lines


def settings_table(result: dict[str, Any]) -> Rows:
    """How much was measured, in how long."""
    settings, machine = result["settings"], result.get("machine", {})
    trained = {(row["method"], row["teacher"], row["trainable"], row["budget"], row["seed"]) for row in result["rows"]
               if row["trainable"]}  # fmt: skip
    cells = [str(settings["prompts"]), str(settings["steps"]), str(len(settings["guidance"])), str(len(trained))]
    cores = f"{machine.get('device', '')}, {machine.get('cores', '')} cores, {settings['threads']} threads"
    return [
        ["prompts", "steps", "strengths of each method", "students", "minutes", "on"],
        [*cells, f"{result['minutes']:.0f}", cores],
    ]


def pictures_table(result: dict[str, Any]) -> Rows:
    """Guidance that a method amounts to along its own path, colour, nearness to the teacher, diversity over noises."""
    lines = [["method", "strength", "effective", "saturation", "contrast", "clipped", "PSNR", "SSIM", "diversity"]]
    for group in _shown(result):
        main = headline(group)
        near = ["", ""] if "psnr" not in main[0] else [f"{_mean(main, 'psnr'):.1f}", f"{_mean(main, 'ssim'):.3f}"]
        lines.append([
            named(group), _strength(main[0]), f"{_mean(main, 'effective'):.2f}", f"{_mean(main, 'saturation'):.3f}",
            f"{_mean(main, 'contrast'):.3f}", f"{100 * _mean(main, 'clipped'):.2f} %", *near,
            f"{_mean(main, 'diversity'):.3f}",
        ])  # fmt: skip
    return lines


def matched_table(result: dict[str, Any]) -> Rows:
    """Every one-pass method beside CFG at the effective guidance that it amounts to."""
    lines = [["method", "effective", "all right", "CFG at that scale", "gain (95 %)"]]
    for row in (row for row in result["rows"] if row["method"] == MATCHED):
        [group] = [group for group in groups(result["rows"]) if named(group) == row["of"]]
        main = headline(group)
        gain = estimate(lambda a, b: a - b, values(main), values([row]))
        shares = [f"{float(values(rows).mean()):.3f}" for rows in (main, [row])]
        lines.append([row["of"], f"{row['strength'] + 1:.2f}", *shares, _interval(gain, "+")])
    return lines


def ablation_table(result: dict[str, Any]) -> Rows:
    """What the parts of the term are worth, each against the whole method with the same teacher.

    At w 2, then at the strength that is best for each; every student of a block was trained as long.
    """
    lines = [["method", "students", "all right", "at own best", "TeEFusion's lead", "at own best"]]
    full = [group for group in groups(result["rows"], method="teefusion", teacher="W2SD")]
    for whole in full:
        same = {name: whole[0][name] for name in ("trainable", "budget")}
        rivals = [
            group
            for name in ("guidance only", "distillcfg", SPLIT)
            for group in groups(result["rows"], method=name, **same)
        ]
        rivals += groups(result["rows"], method=DICE, budget=same["budget"]) + groups(result["rows"], method=UNTRAINED)
        rivals += groups(result["rows"], method=TEACHER, teacher="CFG") + groups(result["rows"], method=BASE)
        for group in (whole, *rivals):
            pair = [(values(headline(g)), own_best(g)[0]) for g in (whole, group)]
            leads = [estimate(lambda a, b: a - b, a, b) for a, b in zip(*pair, strict=True)]
            told = ["", ""] if group is whole else [_interval(lead, "+") for lead in leads]
            lines.append([named(group), _count(headline(group)), *(_interval(mean(part)) for part in pair[1]), *told])
    return lines


def teacher_table(result: dict[str, Any]) -> Rows:
    """Teacher with student, the student's share of the teacher's score; each at the w that is best for it."""
    lines = [["teacher", "passes/step", "teacher", "student", "steps", "students", "student's score", "its share"]]
    for teacher in groups(result["rows"], method=TEACHER):
        for group in groups(result["rows"], method="teefusion", teacher=teacher[0]["teacher"]):
            taught, own = own_best(teacher)[0], own_best(group)[0]
            share = estimate(lambda a, b: a / b, own, taught)
            kind = {"lora": "LoRA", "everything": "full"}[group[0]["trainable"]]
            lines.append([
                teacher[0]["teacher"], f"{teacher[0]['passes']:.3g}", _interval(mean(taught)), kind,
                str(group[0]["budget"]), _count(headline(group)), _interval(mean(own)), _interval(share),
            ])  # fmt: skip
    return lines


def sweep_table(result: dict[str, Any]) -> Rows:
    """Share of pictures that are all right by w; a method with a knob of its own says so."""
    tried = strengths(groups(result["rows"], method=TEACHER)[0])
    lines = [["method", *(f"w {w:g}" for w in tried)]]
    for group in _shown(result):
        own = strengths(group)
        if len(own) != len(tried):
            continue
        knob = "" if group[0]["knob"] == "w" else f" ({group[0]['knob']} {', '.join(f'{s:g}' for s in own)})"
        lines.append([named(group) + knob, *(f"{float(values(at(group, s)).mean()):.3f}" for s in own)])
    return lines


def curve_table(result: dict[str, Any]) -> Rows:
    """Loss on the way, mean over the seeds of a kind."""
    lines = [["student", "students", "steps", "start", "10 %", "25 %", "50 %", "75 %", "end", "minutes"]]
    kinds: dict[tuple, list[dict]] = {}
    for curve in result["curves"]:
        kinds.setdefault((curve["method"], curve["teacher"], curve["trainable"], curve["budget"]), []).append(curve)
    for curves in kinds.values():
        points = [statistics.fmean(column) for column in zip(*(unpacked(c["losses"]) for c in curves), strict=True)]
        near = [statistics.fmean(points[i : i + 3]) for i in (0, 9, 24, 49, 74, len(points) - 3)]
        minutes = [curve["seconds"] / 60 for curve in curves if curve["seconds"]]
        took = f"{statistics.fmean(minutes):.0f}" if minutes else ""
        lines.append([named(curves), str(len(curves)), str(curves[0]["budget"]), *(f"{x:.2f}" for x in near), took])
    return lines


def checkpoint_table(result: dict[str, Any]) -> Rows:
    """Score of students on the way, as far as their trainings kept checkpoints."""
    lines = [["student", "step", "students", "all right (95 %)"]]
    kinds: dict[tuple, Group] = {}
    for row in result["checkpoints"]:
        kinds.setdefault((row["teacher"], row["trainable"], row["budget"], row["step"]), []).append(row)
    for rows in kinds.values():
        lines.append([named(rows), str(rows[0]["step"]), str(len(rows)), _interval(mean(values(rows)))])
    for group in groups(result["rows"], method="teefusion", trainable="lora") if kinds else []:
        main = headline(group)
        lines.append([named(group), f"{main[0]['budget']} (end)", str(len(main)), _interval(mean(values(main)))])
    return lines


def sampler_table(result: dict[str, Any]) -> Rows:
    """The same at w 2 by another sampler."""
    other = [row for row in result["rows"] if row["sampler"] != "euler"]
    lines = [["method", "euler", other[0]["sampler"] if other else ""]]
    for group in groups([{**row, "sampler": "euler"} for row in other]):
        key = {name: group[0][name] for name in ("method", "teacher", "trainable", "budget")}
        [by_euler] = groups(result["rows"], **key)
        shares = [_interval(mean(values(rows))) for rows in (headline(by_euler), group)]
        lines.append([named(group), *shares])
    return lines


def velocity_table(result: dict[str, Any]) -> Rows:
    """How well velocities agree with the teacher's along its path, mean over students with noise levels."""
    lines = [["method", "cosine", "least", "of what guidance adds", "least"]]
    kinds: dict[tuple, list[dict]] = {}
    for row in result["velocities"]:
        kinds.setdefault((row["method"], row["teacher"], row["trainable"], row["budget"]), []).append(row)
    for rows in kinds.values():
        found = [[x for row in rows for x in unpacked(row[name])] for name in ("cosine", "guidance_cosine")]
        cells = [cell for xs in found for cell in (f"{statistics.fmean(xs):.3f}", f"{min(xs):.3f}")]
        lines.append([named(rows), *cells])
    return lines


def diagnosis_table(result: dict[str, Any]) -> Rows:
    """What keeps a student from its teacher: too little guidance, another direction, a training that was too short.

    Effective guidance is that of each along its own path at w 2; the cosine that of what guidance adds to the base;
    the loss is that of the last tenth of the steps, with how much came off since two tenths earlier; seeds are the
    least with the best score of a single student.
    """
    lines = [["student", "effective, teacher", "its own", "cosine", "last loss", "still falling", "seeds"]]
    for group in groups(result["rows"]):
        main = headline(group)
        if not main[0]["trainable"]:
            continue
        same = {name: main[0][name] for name in ("method", "teacher", "trainable", "budget")}
        [taught] = groups(result["rows"], method=TEACHER, teacher=main[0]["teacher"])
        cosines = [x for row in _fitting(result["velocities"], same) for x in unpacked(row["guidance_cosine"])]
        curves = [unpacked(curve["losses"]) for curve in _fitting(result["curves"], same)]
        late, last = (statistics.fmean(x for curve in curves for x in curve[part]) if curves else 0.0
                      for part in (slice(70, 80), slice(90, None)))  # fmt: skip
        scores = [float(value) for value in values(main).mean(1)]
        lines.append([
            named(group), f"{_mean(headline(taught), 'effective'):.2f}", f"{_mean(main, 'effective'):.2f}",
            f"{statistics.fmean(cosines):.3f}" if cosines else "", f"{last:.3f}" if curves else "",
            f"{100 * (late - last) / late:.0f} %" if curves else "", f"{min(scores):.3f} to {max(scores):.3f}",
        ])  # fmt: skip
    return lines


def _fitting(rows: list[dict[str, Any]], names: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in names.items())]


def missing_table(result: dict[str, Any]) -> Rows:
    """Students that were not there, each with the command that trains it."""
    return [["student", "trained by"], *([row["student"], f"`{row['command']}`"] for row in result["missing"])]


def _shown(result: dict[str, Any]) -> list[Group]:
    return [group for group in groups(result["rows"]) if group[0]["method"] != MATCHED]


def _mean(rows: Group, name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def _count(rows: Group) -> str:
    return str(len(rows)) if rows[0]["trainable"] else ""


def _strength(row: dict[str, Any]) -> str:
    return "" if row["method"] == BASE else f"{row['knob']} {HEADLINE[row['knob']]:g}"


def _interval(found: dict[str, Any], sign: str = "") -> str:
    return f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"

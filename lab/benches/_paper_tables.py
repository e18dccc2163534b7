"""The tables of the paper, from the rows that were measured."""

import statistics
from typing import Any

from . import _scores
from ._methods import BASE, DICE, GUIDANCE_LORA, HEADLINE, MATCHED, SPLIT, TEACHER, UNTRAINED
from ._report import unpacked
from ._scores import by_kind, estimate, groups, headline, interval_text, mean_text, named, own_best, strengths, values

Rows = list[list[str]]
CATEGORIES = {"global": "background", "entity": "entity", "attribute": "attribute", "relation": "relation",
              "other": "count"}  # fmt: skip
"""Category of the judge -> name in the tables."""


def table(result: dict[str, Any]) -> Rows:
    """Share of images that are right in each category, with the passes of a step.

    All at w 2, or the equivalent of the method; the last columns are at the strength that is best for each method,
    chosen on the other half of the prompts.
    """
    lines = [["method", "students", "strength", "passes/step", *CATEGORIES.values(), "all right (95 %)",
              "at own best (95 %)", "own best"]]  # fmt: skip
    for group in _shown(result):
        main = headline(group)
        shares = [f"{float(values(main, name).nanmean()):.3f}" for name in CATEGORIES]
        cells = [named(group), _count(main), _strength(main[0]), f"{main[0]['passes']:.3g}"]
        cells += [*shares, mean_text(values(main))]
        best_KN, chosen = own_best(group)
        best = [mean_text(best_KN), " / ".join(f"{value:g}" for value in sorted(set(chosen)))]
        lines.append(cells + (best if len(strengths(group)) > 1 else ["", ""]))
    return lines


def settings_table(result: dict[str, Any]) -> Rows:
    settings, machine = result["settings"], result.get("machine", {})
    trained = by_kind([row for row in result["rows"] if row["trainable"]], *_scores.KIND, "seed")
    cells = [str(settings["prompts"]), str(settings["steps"]), str(len(settings["guidance"])), str(len(trained))]
    cores = f"{machine.get('device', '')}, {machine.get('cores', '')} cores, {machine.get('threads', '')} threads"
    minutes = sum(row["seconds"] for row in result["rows"]) / 60
    head = ["prompts", "steps", "strengths of each method", "students", "minutes", "on"]
    return [head, [*cells, f"{minutes:.0f}", cores]]


def pictures_table(result: dict[str, Any]) -> Rows:
    """Effective guidance along a method's own trajectory, colour, similarity to the teacher, and diversity."""
    lines = [["method", "strength", "effective", "saturation", "contrast", "clipped", "PSNR", "SSIM", "diversity"]]
    for group in _shown(result):
        main = headline(group)
        near = ["", ""] if "psnr" not in main[0] else [f"{_mean(main, 'psnr'):.1f}", f"{_mean(main, 'ssim'):.3f}"]
        cells = [f"{_mean(main, 'effective'):.2f}"]
        cells += [f"{_mean(main, name):.3f}" for name in ("saturation", "contrast")]
        cells += [f"{100 * _mean(main, 'clipped'):.2f} %", *near, f"{_mean(main, 'diversity'):.3f}"]
        lines.append([named(group), _strength(main[0]), *cells])
    return lines


def matched_table(result: dict[str, Any]) -> Rows:
    """Every one-pass method beside CFG at the same effective guidance."""
    lines = [["method", "effective", "all right", "CFG at that scale", "gain (95 %)"]]
    for row in (row for row in result["rows"] if row["method"] == MATCHED):
        [group] = [group for group in groups(result["rows"]) if named(group) == row["of"]]
        parts = values(headline(group)), values([row])
        gain = interval_text(estimate(lambda a, b: a - b, *parts), "+")
        lines.append([row["of"], f"{row['strength'] + 1:.2f}", *(f"{float(part.mean()):.3f}" for part in parts), gain])
    return lines


def ablation_table(result: dict[str, Any]) -> Rows:
    """Ablation of the parts of the term, each against the whole method with the same teacher.

    At w 2, then at the strength that is best for each; all students of a block had the same number of steps, but for
    sharpeners, which learn from larger batches.
    """
    lines, rows = (
        [["method", "students", "all right", "at own best", "TeEFusion's lead", "at own best"]],
        result["rows"],
    )
    for whole in groups(rows, method="teefusion", teacher="W2SD"):
        same = {name: whole[0][name] for name in ("trainable", "budget")}
        rivals = [
            group
            for name in ("guidance only", "distillcfg", SPLIT, GUIDANCE_LORA)
            for group in groups(rows, method=name, **same)
        ]
        rivals += (groups(rows, method=DICE) if rivals else []) + groups(rows, method=UNTRAINED)
        rivals += groups(rows, method=TEACHER, teacher="CFG") + groups(rows, method=BASE)
        for group in (whole, *rivals):
            scores, of_whole = ((values(headline(g)), own_best(g)[0]) for g in (group, whole))
            leads = [interval_text(estimate(lambda a, b: a - b, a, b), "+")
                     for a, b in zip(of_whole, scores, strict=True)]  # fmt: skip
            cells = [named(group), _count(headline(group)), *map(mean_text, scores)]
            lines.append(cells + (["", ""] if group is whole else leads))
    return lines


def teacher_table(result: dict[str, Any]) -> Rows:
    """Scores of teacher and student, and the student's share of the teacher's; each at the w that is best for it."""
    lines = [["teacher", "passes/step", "teacher", "student", "steps", "students", "student's score", "its share"]]
    for teacher in groups(result["rows"], method=TEACHER):
        name, passes, best = teacher[0]["teacher"], f"{teacher[0]['passes']:.3g}", own_best(teacher)[0]
        for group in groups(result["rows"], method="teefusion", teacher=name):
            own = own_best(group)[0]
            cells = [name, passes, mean_text(best), _scores.SPELLED[group[0]["trainable"]], str(group[0]["budget"])]
            share = interval_text(estimate(lambda a, b: a / b, own, best))
            lines.append([*cells, _count(headline(group)), mean_text(own), share])
    return lines


def sweep_table(result: dict[str, Any]) -> Rows:
    """Share of pictures that are all right by w; a method whose strength is not w lists its strengths."""
    tried = strengths(groups(result["rows"], method=TEACHER)[0])
    lines = [["method", *(f"w {w:g}" for w in tried)]]
    for group in _shown(result):
        own = strengths(group)
        if len(own) == len(tried):
            knob = "" if group[0]["knob"] == "w" else f" ({group[0]['knob']} {', '.join(f'{s:g}' for s in own)})"
            lines.append([named(group) + knob, *(f"{float(values(_scores.at(group, s)).mean()):.3f}" for s in own)])
    return lines


def curve_table(result: dict[str, Any]) -> Rows:
    """Loss during training, as the mean over the seeds of a kind."""
    lines = [["student", "students", "steps", "start", "10 %", "25 %", "50 %", "75 %", "end", "minutes"]]
    for curves in by_kind(result["curves"]):
        points = [statistics.fmean(column) for column in zip(*(unpacked(c["losses"]) for c in curves), strict=True)]
        near = [statistics.fmean(points[i : i + 3]) for i in (0, 9, 24, 49, 74, len(points) - 3)]
        minutes = [curve["seconds"] / 60 for curve in curves if curve["seconds"]]
        took = f"{statistics.fmean(minutes):.0f}" if minutes else ""
        lines.append([named(curves), str(len(curves)), str(curves[0]["budget"]), *(f"{x:.2f}" for x in near), took])
    return lines


def sampler_table(result: dict[str, Any]) -> Rows:
    other = [row for row in result["rows"] if row["sampler"] != "euler"]
    lines = [["method", "euler", other[0]["sampler"] if other else ""]]
    for group in by_kind(other):
        [by_euler] = groups(result["rows"], **{name: group[0][name] for name in _scores.KIND})
        lines.append([named(group), *(mean_text(values(rows)) for rows in (headline(by_euler), group))])
    return lines


def velocity_table(result: dict[str, Any]) -> Rows:
    """Agreement of velocities with the teacher's along its trajectory, as the mean over students and noise levels."""
    lines = [["method", "cosine", "least", "of what guidance adds", "least"]]
    for rows in by_kind(result["velocities"]):
        found = [[x for row in rows for x in unpacked(row[name])] for name in ("cosine", "guidance_cosine")]
        lines.append(
            [named(rows), *(cell for xs in found for cell in (f"{statistics.fmean(xs):.3f}", f"{min(xs):.3f}"))]
        )
    return lines


def diagnosis_table(result: dict[str, Any]) -> Rows:
    """Why a student is below its teacher: too little guidance, another direction, or too short a training.

    Effective guidance is measured along the own trajectory of each at w 2. The cosine is that of the guidance. The loss
    is the mean of the last tenth of the steps, with its decrease since two tenths earlier. Seeds are the lowest and the
    highest score of a single student.
    """
    lines = [["student", "effective, teacher", "its own", "cosine", "last loss", "still falling", "seeds"]]
    for group in (group for group in groups(result["rows"]) if group[0]["trainable"]):
        main, same = headline(group), {name: group[0][name] for name in _scores.KIND}
        [teacher] = groups(result["rows"], method=TEACHER, teacher=same["teacher"])
        cells = [f"{_mean(headline(rows), 'effective'):.2f}" for rows in (teacher, group)]
        angles, curves = (sum(by_kind(result[name], **same), []) for name in ("velocities", "curves"))
        cosines = [x for row in angles for x in unpacked(row["guidance_cosine"])]
        cells.append(f"{statistics.fmean(cosines):.3f}" if cosines else "")
        losses = [unpacked(curve["losses"]) for curve in curves]
        if losses:
            late, last = (
                statistics.fmean(x for xs in losses for x in xs[part]) for part in (slice(70, 80), slice(90, None))
            )
        cells += [f"{last:.3f}", f"{100 * (late - last) / late:.0f} %"] if losses else ["", ""]
        scores = values(main).mean(1).tolist()
        lines.append([named(group), *cells, f"{min(scores):.3f} to {max(scores):.3f}"])
    return lines


def missing_table(result: dict[str, Any]) -> Rows:
    return [["student", "trained by"], *([row["student"], f"`{row['command']}`"] for row in result["missing"])]


def _shown(result: dict[str, Any]) -> list[_scores.Group]:
    return [group for group in groups(result["rows"]) if group[0]["method"] != MATCHED]


def _mean(rows: _scores.Group, name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def _count(rows: _scores.Group) -> str:
    return str(len(rows)) if rows[0]["trainable"] else ""


def _strength(row: dict[str, Any]) -> str:
    return "" if row["method"] == BASE else f"{row['knob']} {HEADLINE[row['knob']]:g}"

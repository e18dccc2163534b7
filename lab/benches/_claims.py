"""The claims of the TeEFusion paper, tested on the numbers of the tables.

Every claim is a quantity that must exceed a threshold; its 95 % interval decides: holds (all of it above), does not
hold (all of it below), or undecided. Methods are compared three times: each at its best strength, chosen on the other
half of the prompts, then all at one w, and there without the calibration of the students too.

Shapes: K students, N prompts.
"""

from collections.abc import Callable
from typing import Any

import torch

from . import _training_curves
from ._methods import DICE, GUIDANCE_LORA, HEADLINE, MATCHED, SPLIT, UNTRAINED
from ._scores import (
    Group,
    at,
    by_kind,
    estimate,
    groups,
    headline,
    interval_text,
    named,
    own_best,
    prompts_to_decide,
    strengths,
    uncalibrated,
    values,
)  # fmt: skip

ABOUT = 0.95
"""Share of the teacher's score that counts as reaching it."""
AT_W = f"w {HEADLINE['w']:g}"
PLAIN = f"{AT_W}, uncalibrated"
PICKED: dict[str, Callable[[Group], Any]] = {
    "own best strength": lambda group: own_best(group)[0],
    AT_W: lambda group: values(headline(group)),
    PLAIN: lambda group: values(uncalibrated(group)),
}
"""The strengths at which groups are compared."""
TO_DECIDE = 0.02
"""The gap for which `power_table` gives the number of prompts."""
Claim = dict[str, Any]


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return every claim that has rows, with its intervals and verdicts."""
    rows = result["rows"]
    return [*_about_teacher(rows), *_ablation(rows), *_stronger(rows), *_peak(rows), *_early(result["curves"])]


def ratio(a: Any, b: Any) -> Any:
    return a / b


def gap(a: Any, b: Any) -> Any:
    return a - b


def slope(*means: Any) -> Any:
    """Return the least-squares slope of the students' scores on their teachers'; 0 if the teachers' are all equal."""
    half = len(means) // 2
    scores = torch.stack([torch.as_tensor(mean, dtype=torch.float64) for mean in means])
    x, y = (part - part.mean(0) for part in (scores[:half], scores[half:]))
    spread = x.square().sum(0)
    return torch.where(spread > 1e-12, (x * y).sum(0) / spread.clamp(min=1e-12), 0.0)


def _compared(paper: str, text: str, compared: list[Group], statistic: Callable = gap, threshold: float = 0.0) -> Claim:
    plain = any("uncalibrated" in row for group in compared for row in group)
    picked = {where: pick for where, pick in PICKED.items() if plain or where != PLAIN}
    results = [{"at": where, **estimate(statistic, *map(pick, compared), threshold=threshold)}
               for where, pick in picked.items()]  # fmt: skip
    return {"paper": paper, "claim": text, "quantity": statistic.__name__, "results": results}


def _beats(paper: str, better: Group, worse: Group) -> Claim:
    return _compared(paper, f"{named(better)} beats {named(worse)}", [better, worse])


def _only(rows: list[dict], **wanted: Any) -> Group:
    """Return the matching group; of several, the one that was trained longest."""
    return max(groups(rows, **wanted), key=lambda group: group[0]["budget"] or 0, default=[])


def _students(rows: list[dict]) -> list[Group]:
    return [group for group in groups(rows, method="teefusion") if group[0]["trainable"]]


def _about_teacher(rows: list[dict]) -> list[Claim]:
    """Table 1: a student reaches its teacher in one pass, and beats CFG in half of CFG's passes."""
    found, cfg = [], _only(rows, method="teacher", teacher="CFG")
    for student in _students(rows):
        teacher = _only(rows, method="teacher", teacher=student[0]["teacher"])
        cost = teacher[0]["passes"] / student[0]["passes"]
        text = f"{named(student)} reaches {ABOUT:.0%} of its teacher's score at 1/{cost:.3g} of the passes"
        found.append(_compared("Table 1", text, [student, teacher], ratio, ABOUT))
    for student in _students(rows):
        claim = _compared("Table 1", f"{named(student)} beats CFG, which takes two passes", [student, cfg])
        if matched := [row for row in rows if row["method"] == MATCHED and row["of"] == named(student)]:
            where = f"CFG {matched[0]['strength'] + 1:.2f}, its effective guidance"
            claim["results"].append({"at": where, **estimate(gap, values(headline(student)), values(matched))})
        found.append(claim)
    return found


def _ablation(rows: list[dict]) -> list[Claim]:
    """Table 3: TeEFusion > G(psi(w)) alone > DistillCFG, with the same teacher and training; then other methods."""
    found = []
    for full in _students(rows):
        same = {name: full[0][name] for name in ("teacher", "trainable", "budget")}
        methods = "guidance only", "distillcfg", SPLIT, GUIDANCE_LORA
        alone, layers, split, lora = (_only(rows, method=method, **same) for method in methods)
        dice = _only(rows, method=DICE, teacher=same["teacher"]) if alone else None  # its steps are of 128 examples
        pairs = [("Table 3", full, alone), ("Table 3", alone, layers), ("Table 3", full, layers), ("added", full, dice),
                 ("added", split, full), ("added", split, alone), ("added", lora, full)]  # fmt: skip
        if same["teacher"] == "W2SD":
            pairs.append(("added", full, _only(rows, method=UNTRAINED)))
        found += [_beats(paper, better, worse) for paper, better, worse in pairs if better and worse]
    return found


def _stronger(rows: list[dict]) -> list[Claim]:
    """Table 4: a stronger teacher makes a stronger student after the same number of steps."""
    teachers = {group[0]["teacher"]: group for group in groups(rows, method="teacher")}
    found = []
    for name in dict.fromkeys(group[0]["teacher"] for group in _students(rows)):
        if name != "CFG":
            text = f"{name} is the stronger teacher than CFG"
            found.append(_compared("Table 4", text, [teachers[name], teachers["CFG"]]))
    kinds: dict[tuple, list[Group]] = {}
    for group in _students(rows):
        kinds.setdefault((group[0]["trainable"], group[0]["budget"]), []).append(group)
    for (trainable, _), students in kinds.items():
        if len(students) > 1:
            own = [teachers[group[0]["teacher"]] for group in students]
            text = f"over {len(students)} teachers, students rise with their teachers (slope of scores, {trainable})"
            found.append(_compared("Table 4", text, own + students, slope))
            plain = next((group for group in students if group[0]["teacher"] == "CFG"), [])
            found += [_beats("Table 4", student, plain) for student in students if plain and student is not plain]
    return found


def _peak(rows: list[dict]) -> list[Claim]:
    """Figure 5a: the best w lies inside the trained range, not at its ends."""
    found = []
    for group in _students(rows):
        ends = strengths(group)[0], strengths(group)[-1]
        if inner := [row for row in group if ends[0] < row["strength"] < ends[1]]:
            peak_KN, chosen = own_best(inner)
            results = [{"at": f"above w {end:g}", **estimate(gap, peak_KN, values(at(group, end)))} for end in ends]
            inside = " or ".join(f"{w:g}" for w in sorted(set(chosen)))
            text = f"{named(group)} is best inside the range, at w {inside}"
            found.append({"paper": "Figure 5a", "claim": text, "quantity": "gap", "results": results})
    return found


def _early(curves: list[dict]) -> list[Claim]:
    """Figure 5b: most of what is learned is learned early."""
    found = []
    for own in by_kind(curves, method="teefusion"):
        text = f"{named(own)}: more than half of the fall in loss comes in the first quarter of the steps"
        result = {"at": "losses of training", **_training_curves.early_share(own)}
        found.append({"paper": "Figure 5b", "claim": text, "quantity": "share", "results": [result]})
    return found


def table(result: dict[str, Any]) -> list[list[str]]:
    lines = [["paper", "claim", "compared at", "figure (95 % interval)", "must exceed", "verdict"]]
    for claim in claims(result):
        sign = "+" if claim["quantity"] == "gap" else ""
        for index, found in enumerate(claim["results"]):
            first = [claim["paper"], claim["claim"]] if index == 0 else ["", ""]
            cells = [found["at"], interval_text(found, sign), f"{found['threshold']:g}", _verdict_text(found)]
            lines.append([*first, *cells])
    return lines


def verdict_table(result: dict[str, Any]) -> list[list[str]]:
    """Return one line per claim with its verdicts, without the figures."""
    lines = [["paper", "claim", *PICKED]]
    for claim in claims(result):
        verdicts = {found["at"]: found["verdict"] for found in claim["results"]}
        if verdicts.keys() & PICKED.keys():
            lines.append([claim["paper"], claim["claim"], *(verdicts.get(at, "") for at in PICKED)])
    return lines


def _verdict_text(found: dict[str, Any]) -> str:
    if "prompts" not in found:
        return str(found["verdict"])
    needed = found["prompts"]
    return f"{found['verdict']}; " + ("needs more seeds" if needed is None else f"{needed:,} prompts would decide it")


def power_table(result: dict[str, Any]) -> list[list[str]]:
    """Number of prompts that decide a gap of `TO_DECIDE`, with the seeds that there are."""
    lines = [["compared at " + AT_W, f"prompts for a gap of {TO_DECIDE:g}"]]
    rows = result["rows"]
    main = max(groups(rows, method="teefusion", teacher="W2SD"), key=lambda group: len(headline(group)))
    for group in groups(rows):
        if named(group) != named(main) and (group[0]["trainable"] or group[0]["method"] == "teacher"):
            parts = values(headline(main)), values(headline(group))
            needed = prompts_to_decide(gap, *parts, distance=TO_DECIDE)
            lines.append([f"{named(main)} and {named(group)}", "more seeds first" if needed is None else f"{needed:,}"])
    return lines

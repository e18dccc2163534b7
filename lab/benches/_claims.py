"""What the TeEFusion paper claims, put to the numbers of the tables.

Every claim is a quantity that must lie above a threshold; its 95 % interval decides: holds (all of it above), does not
hold (all of it below), undecided. Methods are compared twice: each at the strength that is best for it, chosen on the
other half of the prompts among as many strengths as any other method has, then all at one w.

Shapes: K students, N prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _curves
from ._arms import DICE, HEADLINE, MATCHED, SPLIT, UNTRAINED
from ._scores import Group, at, estimate, groups, headline, named, own_best, strengths, values

ABOUT = 0.95
"""Share of the teacher's score that counts as about the teacher's."""
OWN, SAME = "own best strength", f"w {HEADLINE['w']:g}"
Claim = dict[str, Any]


def claims(result: dict[str, Any]) -> list[Claim]:
    """Return every claim that there are rows for, with its intervals and verdicts."""
    rows = result["rows"]
    return [*_about_teacher(rows), *_ablation(rows), *_stronger(rows), *_peak(rows), *_early(result["curves"])]


def ratio(a: Any, b: Any) -> Any:
    """Share of b that a reaches."""
    return a / b


def gap(a: Any, b: Any) -> Any:
    """How far a is above b."""
    return a - b


def _compared(paper: str, text: str, pair: tuple[Group, Group], statistic: Callable, threshold: float) -> Claim:
    own = [own_best(group)[0] for group in pair]
    same = [values(headline(group)) for group in pair]
    found = {OWN: own, SAME: same}
    results = [{"at": where, **estimate(statistic, *parts, threshold=threshold)} for where, parts in found.items()]
    return {"paper": paper, "claim": text, "quantity": statistic.__name__, "results": results}


def _only(rows: list[dict], **wanted: Any) -> Group:
    """The group that fits; of several, the one that was trained longest."""
    found = groups(rows, **wanted)
    return max(found, key=lambda group: group[0]["budget"] or 0) if found else []


def _students(rows: list[dict], method: str = "teefusion") -> list[Group]:
    return [group for group in groups(rows, method=method) if group[0]["trainable"]]


def _about_teacher(rows: list[dict]) -> list[Claim]:
    """Table 1: a student reaches its teacher in one pass, beats CFG in half of its passes."""
    found, cfg = [], _only(rows, method="teacher", teacher="CFG")
    for student in _students(rows):
        teacher = _only(rows, method="teacher", teacher=student[0]["teacher"])
        cost = teacher[0]["passes"] / student[0]["passes"]
        text = f"{named(student)} reaches {ABOUT:.0%} of its teacher's score at 1/{cost:.3g} of the passes"
        found.append(_compared("Table 1", text, (student, teacher), ratio, ABOUT))
    for student in _students(rows):
        claim = _compared("Table 1", f"{named(student)} beats CFG, which takes two passes", (student, cfg), gap, 0.0)
        if matched := [row for row in rows if row["method"] == MATCHED and row["of"] == named(student)]:
            parts = values(headline(student)), values(matched)
            where = f"CFG {matched[0]['strength'] + 1:.2f}, its effective guidance"
            claim["results"].append({"at": where, **estimate(gap, *parts)})
        found.append(claim)
    return found


def _ablation(rows: list[dict]) -> list[Claim]:
    """Table 3: TeEFusion > G(psi(w)) alone > DistillCFG, same teacher, same training; what else could be had."""
    found = []
    for full in _students(rows):
        same = {name: full[0][name] for name in ("teacher", "trainable", "budget")}
        alone, layers, split = (_only(rows, method=method, **same) for method in ("guidance only", "distillcfg", SPLIT))
        dice = _only(rows, method=DICE, teacher=same["teacher"], budget=same["budget"])
        pairs = [("Table 3", full, alone), ("Table 3", alone, layers), ("Table 3", full, layers), ("added", full, dice),
                 ("added", split, full), ("added", split, alone)]  # fmt: skip
        if same["teacher"] == "W2SD":
            pairs.append(("added", full, _only(rows, method=UNTRAINED)))
        for paper, better, worse in pairs:
            if better and worse:
                text = f"{named(better)} beats {named(worse)}"
                found.append(_compared(paper, text, (better, worse), gap, 0.0))
    return found


def _stronger(rows: list[dict]) -> list[Claim]:
    """Table 4: a stronger teacher makes a stronger student, trained as long."""
    teachers = {group[0]["teacher"]: group for group in groups(rows, method="teacher")}
    found = []
    for name in dict.fromkeys(group[0]["teacher"] for group in _students(rows)):
        if name != "CFG":
            text = f"{name} is the stronger teacher than CFG"
            found.append(_compared("Table 4", text, (teachers[name], teachers["CFG"]), gap, 0.0))
    kinds = dict.fromkeys(_kind(group) for group in _students(rows))
    for trainable, budget in kinds:
        students = [group for group in _students(rows) if _kind(group) == (trainable, budget)]
        if len(students) < 2:
            continue
        taught = [teachers[group[0]["teacher"]] for group in students]
        text = f"over {len(students)} teachers, students rise with their teachers (slope of scores, {trainable})"
        picked = {OWN: lambda group: own_best(group)[0], SAME: lambda group: values(headline(group))}
        results = []
        for where, pick in picked.items():
            parts = [pick(group) for group in (*taught, *students)]
            results.append({"at": where, **estimate(_slope, *parts)})
        found.append({"paper": "Table 4", "claim": text, "quantity": "slope", "results": results})
        plain = next((group for group in students if group[0]["teacher"] == "CFG"), [])
        for student in (group for group in students if plain and group is not plain):
            text = f"{named(student)} beats {named(plain)}"
            found.append(_compared("Table 4", text, (student, plain), gap, 0.0))
    return found


def _kind(group: Group) -> tuple[str, int]:
    return group[0]["trainable"], group[0]["budget"]


def _slope(*means: Any) -> Any:
    """Least squares of students' scores on their teachers'; 0 where these are all alike, which tells nothing."""
    half = len(means) // 2
    scores = torch.stack([torch.as_tensor(mean, dtype=torch.float64) for mean in means])
    x, y = (part - part.mean(0) for part in (scores[:half], scores[half:]))
    spread = x.square().sum(0)
    return torch.where(spread > 1e-12, (x * y).sum(0) / spread.clamp(min=1e-12), 0.0)


def _peak(rows: list[dict]) -> list[Claim]:
    """Figure 5a: the best w lies inside the trained range, not at its ends."""
    found = []
    for group in _students(rows):
        ends = strengths(group)[0], strengths(group)[-1]
        inner = [row for row in group if ends[0] < row["strength"] < ends[1]]
        if not inner:
            continue
        peak_KN, chosen = own_best(inner)
        results = []
        for end in ends:
            parts: tuple[Tensor, Tensor] = peak_KN, values(at(group, end))
            results.append({"at": f"above w {end:g}", **estimate(gap, *parts)})
        inside = " or ".join(f"{w:g}" for w in sorted(set(chosen)))
        text = f"{named(group)} is best inside the range, at w {inside}"
        found.append({"paper": "Figure 5a", "claim": text, "quantity": "gap", "results": results})
    return found


def _early(curves: list[dict]) -> list[Claim]:
    """Figure 5b: most of what is learned is learned early."""
    found = []
    taught = [curve for curve in curves if curve["method"] == "teefusion"]
    for key in dict.fromkeys(_key(curve) for curve in taught):
        own = [curve for curve in taught if _key(curve) == key]
        text = f"{named(own)}: more than half of the fall in loss comes in the first quarter of the steps"
        result = {"at": "losses of training", **_curves.early_share(own)}
        found.append({"paper": "Figure 5b", "claim": text, "quantity": "share", "results": [result]})
    return found


def _key(curve: dict) -> tuple:
    return curve["teacher"], curve["trainable"], curve["budget"]


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return heading with one line per claim and comparison."""
    lines = [["paper", "claim", "compared at", "figure (95 % interval)", "must exceed", "verdict"]]
    for claim in claims(result):
        for index, found in enumerate(claim["results"]):
            first = [claim["paper"], claim["claim"]] if index == 0 else ["", ""]
            sign = "+" if claim["quantity"] == "gap" else ""
            figure = f"{found['value']:{sign}.3f} ({found['low']:{sign}.3f} to {found['high']:{sign}.3f})"
            lines.append([*first, found["at"], figure, f"{found['threshold']:g}", found["verdict"]])
    return lines

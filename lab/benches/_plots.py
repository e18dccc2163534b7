"""The plots of the report, each an SVG that is the same for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch

from ._arms import BASE, MATCHED, TEACHER
from ._embedding import COARSE, FINE, HIGHEST, LOWEST, grid
from ._numbers import unpacked
from ._scores import Group, at, groups, headline, mean, named, own_best, strengths, values
from ._study import STEPS

WIDE = 7.2
STYLE = {
    "font.size": 8,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "teefusion",
    "savefig.bbox": "tight",
}


def plots(result: dict[str, Any]) -> dict[str, str]:
    """Draw what there are numbers for: name -> SVG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    found, pairs = {}, matplotlib.colormaps["tab20"].colors
    # as many as there are methods, no two alike
    cycle = pyplot.cycler(color=[*pairs[::2], *pairs[1::2]])
    with pyplot.rc_context({**STYLE, "axes.prop_cycle": cycle}):
        for name, (wanted, draw) in PLOTS.items():
            if result[wanted]:
                figure = draw(pyplot, result)
                text = io.StringIO()
                figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
                pyplot.close(figure)
                found[name] = text.getvalue()[text.getvalue().index("<svg") :]
    return found


def _scores(pyplot: Any, result: dict[str, Any]) -> Any:
    shown = [group for group in groups(result["rows"]) if group[0]["method"] != MATCHED]
    figure, axes = pyplot.subplots(figsize=(WIDE, 0.6 + 0.28 * len(shown)))
    for place, group in enumerate(reversed(shown)):
        for shift, color, part in ((0.15, "C0", values(headline(group))), (-0.15, "C1", own_best(group)[0])):
            found = mean(part)
            axes.plot([found["low"], found["high"]], [place + shift] * 2, color=color, lw=2, solid_capstyle="round")
            axes.plot(found["value"], place + shift, "o", ms=4, color=color)
    axes.plot([], [], "o-", color="C0", label="at the strength of the headline")
    axes.plot([], [], "o-", color="C1", label="at its own best strength")
    axes.set_yticks(range(len(shown)), [named(group) for group in reversed(shown)])
    axes.set_xlabel("share of pictures that are all right, 95 % interval")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def _sweep(pyplot: Any, result: dict[str, Any]) -> Any:
    figure, axes = pyplot.subplots(figsize=(WIDE, 3.4))
    for group in groups(result["rows"]):
        row, tried = group[0], strengths(group)
        if len(tried) < 2 or row["knob"] != "w" or row["method"] == MATCHED:
            continue
        means = [mean(values(at(group, strength))) for strength in tried]
        [line] = axes.plot(
            tried, [m["value"] for m in means], "o--" if row["method"] == TEACHER else "o-", ms=3, label=named(group)
        )
        low, high = ([m[end] for m in means] for end in ("low", "high"))
        axes.fill_between(tried, low, high, color=line.get_color(), alpha=0.08, lw=0)
    axes.set_xlabel("w (CFG scale 1 + w)")
    axes.set_ylabel("all right")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _guidance(pyplot: Any, result: dict[str, Any]) -> Any:
    """Score over effective guidance: what lies above the line of CFG is more than stronger guidance."""
    figure, axes = pyplot.subplots(figsize=(WIDE, 3.2))
    [cfg] = groups(result["rows"], method=TEACHER, teacher="CFG")
    scales = {1.0: headline(groups(result["rows"], method=BASE)[0]), **{1 + s: at(cfg, s) for s in strengths(cfg)}}
    means = [mean(values(rows)) for rows in scales.values()]
    axes.plot(list(scales), [m["value"] for m in means], "k.-", label="CFG at that scale")
    axes.fill_between(list(scales), [m["low"] for m in means], [m["high"] for m in means], color="k", alpha=0.08, lw=0)
    for group in groups(result["rows"]):
        if group[0]["method"] not in (BASE, MATCHED):
            main = headline(group)
            found, x = mean(values(main)), sum(row["effective"] for row in main) / len(main)
            bar = [[found["value"] - found["low"]], [found["high"] - found["value"]]]
            axes.errorbar(x, found["value"], bar, fmt="o", ms=4, lw=1, label=named(group))
    axes.set_xlabel("effective guidance along the method's own path (a CFG scale)")
    axes.set_ylabel("all right")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _taught(pyplot: Any, result: dict[str, Any]) -> Any:
    figure, axes = pyplot.subplots(figsize=(WIDE / 2, 3.2))
    for teacher in groups(result["rows"], method=TEACHER):
        for group in groups(result["rows"], method="teefusion", teacher=teacher[0]["teacher"]):
            x, y = mean(own_best(teacher)[0]), mean(own_best(group)[0])
            bars = [[[m["value"] - m["low"]], [m["high"] - m["value"]]] for m in (x, y)]
            axes.errorbar(x["value"], y["value"], bars[1], bars[0], fmt="o", ms=4, lw=1, label=named(group))
    ends = axes.get_xlim()
    axes.plot(ends, ends, "k:", lw=1, label="student = teacher")
    axes.set_xlabel("teacher, all right at its own best w")
    axes.set_ylabel("student, all right at its own best w")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _losses(pyplot: Any, result: dict[str, Any]) -> Any:
    panels = 2 if result["checkpoints"] else 1
    figure, [[left, *right]] = pyplot.subplots(
        1, panels, figsize=(WIDE * panels / 2, 3.6), layout="constrained", squeeze=False
    )
    kinds: dict[tuple, list[dict]] = {}
    for curve in result["curves"]:
        kinds.setdefault((curve["method"], curve["teacher"], curve["trainable"], curve["budget"]), []).append(curve)
    for curves in kinds.values():
        points_KP = torch.tensor([unpacked(curve["losses"]) for curve in curves])
        steps = [(index + 0.5) * curves[0]["budget"] / points_KP.shape[1] for index in range(points_KP.shape[1])]
        [line] = left.plot(steps, points_KP.mean(0).tolist(), lw=1, label=named(curves))
        ends = points_KP.amin(0).tolist(), points_KP.amax(0).tolist()
        left.fill_between(steps, *ends, color=line.get_color(), alpha=0.12, lw=0)
    left.set(xlabel="step", ylabel="loss, mean of a hundredth of the steps", yscale="log")
    left.yaxis.set_major_formatter("{x:g}")
    left.yaxis.set_minor_formatter("{x:g}")
    left.set_ylim(top=60)  # room for the legend above a loss that does not fall
    left.legend(fontsize=6, loc="upper right")
    for axes in right:
        _on_the_way(axes, result)
    return figure


def _on_the_way(axes: Any, result: dict[str, Any]) -> None:
    kinds: dict[tuple, dict[int, Group]] = {}
    for row in result["checkpoints"]:
        kinds.setdefault((row["teacher"], row["trainable"], row["budget"]), {}).setdefault(row["step"], []).append(row)
    for (teacher, trainable, budget), by_step in kinds.items():
        found = groups(result["rows"], method="teefusion", teacher=teacher, trainable=trainable, budget=budget)
        steps = by_step | {budget: headline(found[0])}
        means = [mean(values(rows)) for rows in steps.values()]
        [line] = axes.plot(list(steps), [m["value"] for m in means], "o-", ms=3, label=named(found[0]))
        axes.fill_between(
            list(steps), [m["low"] for m in means], [m["high"] for m in means], color=line.get_color(), alpha=0.12, lw=0
        )
    axes.set(xlabel="step", ylabel="all right")
    axes.legend(fontsize=6)


def _velocities(pyplot: Any, result: dict[str, Any]) -> Any:
    figure, both = pyplot.subplots(1, 2, figsize=(WIDE, 2.8), layout="constrained")
    kinds: dict[tuple, list[dict]] = {}
    for row in result["velocities"]:
        kinds.setdefault((row["method"], row["teacher"], row["trainable"], row["budget"]), []).append(row)
    for axes, name, label in zip(
        both, ("cosine", "guidance_cosine"), ("velocities", "what guidance adds"), strict=True
    ):
        for rows in kinds.values():
            axes.plot(
                range(STEPS), torch.tensor([unpacked(row[name]) for row in rows]).mean(0).tolist(), label=named(rows)
            )
        axes.set(xlabel="step, from noise to picture", ylabel=f"cosine of {label}", xticks=range(0, STEPS, 5))
    both[1].legend(fontsize=6)
    return figure


def _embedded(pyplot: Any, result: dict[str, Any]) -> Any:
    shown = result["embedding"]
    figure, rows = pyplot.subplots(len(shown), 3, figsize=(WIDE, 2.3 * len(shown)), layout="constrained", squeeze=False)
    w = grid(FINE).tolist()
    for (first, second, third), found in zip(rows, shown, strict=True):
        axis = unpacked(found["first"]), unpacked(found["second"])
        first.scatter(*axis, c=w, s=8)
        share = " + ".join(f"{100 * part:.0f} %" for part in found["variance"])
        first.set(title=f"{found['name']}\nPCA ({share})", xlabel="first", ylabel="second")
        places = second.scatter(*(unpacked(part) for part in found["tsne"]), c=w, s=8)
        second.set(title="t-SNE", xticks=[], yticks=[])
        figure.colorbar(places, ax=second, label="w")
        cosines = [unpacked(line) for line in found["cosines"]]
        edges = [LOWEST - COARSE / 2, HIGHEST + COARSE / 2] * 2
        heat = third.imshow(cosines, origin="lower", extent=edges, vmax=1)
        third.grid(False)
        third.set(title="cosine", xlabel="w", ylabel="w")
        figure.colorbar(heat, ax=third)
    return figure


PLOTS: dict[str, tuple[str, Callable[[Any, dict[str, Any]], Any]]] = {
    "scores": ("rows", _scores),
    "guidance": ("rows", _guidance),
    "sweep": ("rows", _sweep),
    "taught": ("rows", _taught),
    "losses": ("curves", _losses),
    "velocities": ("velocities", _velocities),
    "embedding": ("embedding", _embedded),
}
"""Name -> part of the result that it needs, how it is drawn."""

"""The plots of the benchmark's report, as parts of its page. They show rows and compute means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from html import escape
from itertools import cycle

import numpy as np

from nnunet_lgesynth.anatomy.aha import SEGMENTS
from nnunet_lgesynth.benchmark.arms import patient_of
from nnunet_lgesynth.benchmark.page import ACCENT, INK, plot, section
from nnunet_lgesynth.benchmark.records import FILTERED
from nnunet_lgesynth.benchmark.variants import REFERENCE, Variant, is_tested, reference_of
from nnunet_lgesynth.benchmark.verdict import PRIMARY
from nnunet_lgesynth.config import InjectionConfig
from nnunet_lgesynth.pool.sheet import bulls_eye

__all__ = ["bland_altman", "doses", "forest", "paired", "segments"]

LIMITS = 1.96           # standard deviations: limits of agreement (Bland and Altman 1986)
WORST_SEGMENT = 50.0    # points of its wall, the darkest of the bull's-eye


def forest(rows: list[dict]) -> str:
    """Differences of the primary metrics with their intervals, an arm a line."""
    shown = [(metric, [(_against(r["arm"]), r) for r in rows if r["value"] is not None
                       and r["metric"] == f"{metric}_diff_vs_{reference_of(r['arm'])}"])
             for metric in PRIMARY]
    figures = [_figure(plot(_draw_forest(PRIMARY[metric], lines), f"forest {metric}",
                            (3.6, 1.1 + 0.4 * len(lines))))
               for metric, lines in shown if lines]
    return _plots("Differences from real", figures,
                  "Mean over patients and its 95 % interval; right of the line is better. Filtered "
                  "arms are compared with filtered real, arms of n patients with real of as many.")


def _against(arm: str) -> str:
    reference = reference_of(arm)
    told = arm.replace(":", ":\n")
    return told if reference.removesuffix(FILTERED) == REFERENCE else f"{told}\n− {reference}"


def paired(patients: list[dict]) -> str:
    """Each patient's Dice in an arm against the reference's."""
    dice = {(p["arm"], p["case"]): p["dice"] for p in patients}
    figures = []
    for arm in dict.fromkeys(p["arm"] for p in patients):
        reference = reference_of(arm)
        pairs = [(dice[reference, c], value) for (a, c), value in dice.items()
                 if a == arm and (reference, c) in dice]
        if arm != reference and pairs:
            figures.append(_figure(plot(_draw_pairs(pairs, arm, reference), arm)))
    return _plots("Each patient, paired", figures,
                  "Scar Dice, mean over seeds; a point above the diagonal is a patient who gained.")


def bland_altman(cases: Iterable[dict]) -> str:
    """Predicted minus true scar volume against their mean, an arm a plot."""
    volumes: dict[str, dict[str, list]] = {}
    for row in cases:
        if row.get("true_ml") is not None:
            volumes.setdefault(row["arm"], {}).setdefault(patient_of(row), []).append(
                (row["true_ml"], row["predicted_ml"]))
    figures = [_figure(plot(_draw_volumes(np.array([np.mean(v, axis=0) for v in found.values()]),
                                          arm), f"volume {arm}"))
               for arm, found in volumes.items()]
    return _plots("Scar volume", figures,
                  "Bland-Altman: each point a patient, mean over seeds; bias and limits of "
                  "agreement (1.96 standard deviations) as lines.")


def segments(cases: Iterable[dict]) -> str:
    """Mean absolute error of each AHA segment's scar, an arm a bull's-eye."""
    errors: dict[str, dict[int, dict]] = {}
    for row in cases:
        for segment, truth, predicted in row.get("segments", ()):
            errors.setdefault(row["arm"], {s: {} for s in SEGMENTS})[segment].setdefault(
                patient_of(row), []).append(100 * abs(predicted - truth))
    figures = [_figure(plot(_draw_segments({s: float(np.mean([np.mean(e) for e in of.values()]))
                                            for s, of in found.items() if of}),
                            f"segments {arm}", projection="polar"), escape(arm))
               for arm, found in errors.items()]
    return _plots("AHA segments", figures,
                  "Mean absolute error of the share of each segment that is scarred, in points of "
                  "its wall, over patients and seeds; darker is worse.")


def doses(rows: list[dict]) -> str:
    """The primary metrics over the injection probability, and over the number of real patients,
    where arms differ in these."""
    arms = {arm: Variant.of(arm) for arm in dict.fromkeys(r["arm"] for r in rows)
            if not arm.endswith(FILTERED)}
    found = {(r["arm"], r["metric"]): r for r in rows}
    figures = []
    for label, key in (("injection probability", "probability"),
                       ("real training patients", "patients")):
        lines: dict[str, list] = {}          # the arm without its dose -> [(dose, arm)]
        for arm, variant in arms.items():
            dose = getattr(variant, key)
            if key == "probability" and dose is None:
                dose = InjectionConfig().probability
            lines.setdefault(replace(variant, **{key: None}).name, []).append((dose, arm))
        if key == "probability":                 # all that these arms tell of 0 is their reference
            lines = {name: [*[(0.0, reference_of(name))] * (reference_of(name) in arms), *points]
                     for name, points in lines.items() if is_tested(name)}
        lines = {name: points for name, points in lines.items() if any(
            getattr(arms[arm], key) is not None for _, arm in points)}
        for metric in PRIMARY if lines else ():
            shown = {name: [(dose, found[arm, metric]) for dose, arm in points
                            if found[arm, metric]["value"] is not None]
                     for name, points in lines.items()}
            if not any(shown.values()):
                continue
            figures.append(_figure(plot(_draw_doses(shown, label, PRIMARY[metric]),
                                        f"dose {key} {metric}")))
    return _plots("Dose", figures, "Means with 95 % intervals over patients; filtered arms left "
                  "out.")


def _plots(title: str, figures: list[str], note: str) -> str:
    if not figures:
        return ""
    return section(title, f'<div class="plots">{"".join(figures)}</div>', note)


def _figure(svg: str, caption: str = "") -> str:
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def _draw_forest(name: str, lines: list[tuple[str, dict]]):
    def draw(axes) -> None:
        axes.axvline(0, color=INK, linewidth=0.6)
        for at, (_, row) in enumerate(lines):
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [at, at], color=ACCENT, linewidth=1.6)
            axes.plot(row["value"], at, "o", color=ACCENT, markersize=5)
        axes.set_yticks(range(len(lines)), [arm for arm, _ in lines])
        axes.set(xlabel=name, ylim=(len(lines) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=4)
    return draw


def _draw_doses(lines: dict[str, list[tuple[float | None, dict]]], label: str, name: str):
    every = {dose for points in lines.values() for dose, _ in points}
    order = sorted(every, key=lambda dose: (dose is None, dose))     # None: all patients, last

    def draw(axes) -> None:
        shown = [(arm, points) for arm, points in lines.items() if points]
        for (arm, points), style in zip(shown, cycle(("o-", "s--", "^:", "v-."))):
            told = sorted(points, key=lambda p: order.index(p[0]))
            at = [order.index(dose) for dose, _ in told]
            values = np.array([[r["value"]] + [r["value"] if r[k] is None else r[k]
                                               for k in ("low", "high")] for _, r in told])
            axes.errorbar(at, values[:, 0], np.abs(values[:, 1:] - values[:, :1]).T, fmt=style,
                          color=INK if arm == REFERENCE else ACCENT, label=arm, capsize=2,
                          markersize=4, linewidth=1)
        axes.set_xticks(range(len(order)), ["all" if d is None else f"{d:g}" for d in order])
        axes.set(xlabel=label, ylabel=name)
        axes.legend(frameon=False, fontsize=8)
    return draw


def _draw_pairs(pairs: list[tuple[float, float]], arm: str, reference: str):
    def draw(axes) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.6)
        axes.plot(*zip(*pairs), "o", color=ACCENT, markersize=5, alpha=0.75, clip_on=False)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel=reference, ylabel=arm)
    return draw


def _draw_volumes(volumes: np.ndarray, arm: str):
    change = volumes[:, 1] - volumes[:, 0]
    bias, limits = change.mean(), LIMITS * (change.std(ddof=1) if len(change) > 1 else 0.0)

    def draw(axes) -> None:
        axes.axhline(bias, color=INK, linewidth=0.9)
        for limit in (bias - limits, bias + limits):
            axes.axhline(limit, color=INK, linewidth=0.6, linestyle="dashed")
        axes.plot(volumes.mean(axis=1), change, "o", color=ACCENT, markersize=5, alpha=0.75)
        axes.set(xlabel="mean of true and predicted scar, mL",
                 ylabel="predicted - true, mL", title=(
                     f"{arm}\nbias {bias:+.1f} mL, limits {bias - limits:+.1f} to "
                     f"{bias + limits:+.1f}"))
        axes.title.set_fontsize(9)
    return draw


def _draw_segments(errors: dict[int, float]):
    def draw(axes) -> None:
        bulls_eye(axes, errors, lambda _, value: (1.0, 0.62, 0.18, min(value / WORST_SEGMENT, 1.0)),
                  "{:.0f}".format)
    return draw

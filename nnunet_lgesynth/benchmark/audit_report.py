"""What an audit found, in words, numbers and pictures: audit.json and audit.html. Computes nothing.

The pictures show patients' slices, so the page is for where the data may be.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

import numpy as np
from scipy import ndimage

from nnunet_lgesynth.benchmark.audit import Audit, Diversity, Pair
from nnunet_lgesynth.benchmark.memorisation import Match, Memorisation
from nnunet_lgesynth.benchmark.page import (
    ACCENT,
    INK,
    PRIVATE,
    number,
    picture,
    plot,
    provenance,
    section,
    table,
    verdict,
    write_page,
)
from nnunet_lgesynth.files import write_json

__all__ = ["notes", "sentences", "write_audit"]

ZOOM = 3                # of a crop's pixels
RIM = np.array([255, 157, 46], np.uint8)
MEASURES = {          # what is found, and what it means to miss the bound
    "spread": ("two seeds differ by {:.0%} of independent texture", "seeds hardly differ"),
    "slope": ("{:.0%} of a change of contrast is painted", "contrast requests are not followed"),
    "inside": ("{:.0%} of a change of place lies in the scars asked for",
               "place requests are not followed")}


def sentences(audit: Audit) -> list[str]:
    """The outcome of each part."""
    return [_memorisation(audit.memorisation), _diversity(audit.diversity)]


def notes(audit: Audit) -> list[str]:
    """What should be known about the training cases themselves."""
    return [f"{' and '.join(twins)} look like one patient and count as one here; keep them on the "
            "same side of every split." for twins in audit.memorisation.twins]


def write_audit(folder: Path, audit: Audit, title: str, about: dict) -> Path:
    """Write both files into a folder; returns the page's path.

    `about` is JSON-ready and has the command, versions, machine and date.
    """
    said = sentences(audit)
    write_json(folder / "audit.json", {**audit.as_dict(), "sentences": said, "notes": notes(audit),
                                       "about": about})
    path = folder / "audit.html"
    write_page(path, title, [
        f'<p class="soft">{escape(about["date"])} · {escape(about["machine"])}</p>',
        verdict(_headline(audit), *said, *notes(audit)),
        _distances(audit.memorisation),
        _pairs(audit.pairs),
        _varied(audit.diversity), _rows("Every synthetic scar", audit.memorisation.samples),
        _rows("Every real scar, beside the other patients", audit.memorisation.reals),
        provenance([about["command"]], about["versions"], about["machine"])])
    return path


def _headline(audit: Audit) -> str:
    wrong = [] if audit.memorisation.passed else ["training scars are repeated"]
    wrong += [MEASURES[name][1] for name in audit.diversity.failed]
    return f"Failed: {', '.join(wrong)}." if wrong else \
        "Passed: training scars are not repeated, seeds differ, and requests are followed."


def _memorisation(part: Memorisation) -> str:
    return (f"Memorisation {_outcome(part.passed)}: {part.flagged} of {len(part.samples)} "
            f"synthetic scars lie suspiciously near to one training patient ({part.allowed} are "
            f"allowed; {part.real_flagged} of {len(part.reals)} real scars lie so near to another "
            "patient).")


def _diversity(part: Diversity) -> str:
    found = ", ".join(f"{MEASURES[name][0].format(getattr(part, name))} (at least {bound:.0%})"
                      for name, bound in part.bounds.items())
    return f"Diversity {_outcome(part.passed)}: {found}."


def _outcome(passed: bool) -> str:
    return "passed" if passed else "failed"


def _distances(part: Memorisation) -> str:
    figures = [f"<figure>{plot(_histogram(part, name, label), name, (4.2, 2.8))}</figure>"
               for name, label in (("distance", "distance to the nearest patient"),
                                   ("ratio", "distance / that to the next patients"))]
    return section("How near they lie", f'<div class="plots">{"".join(figures)}</div>', (
        "Blue: synthetic scars and the nearest training scar. Line: real scars and the nearest "
        "other patient. The distance is the root mean squared difference inside the scar at the "
        "best place, turn and mirroring; 1 is half the image's range around the heart. Small or "
        "smooth scars lie near to everything, so what counts is the ratio of that distance to the "
        "mean distance to the patients that come next: a copy's is near 0. A scar is suspicious if "
        "its ratio is below that of every real scar of like size, as by chance "
        f"{part.expected:.1%} are."))


def _histogram(part: Memorisation, name: str, label: str) -> Callable:
    synthetic, real = ([getattr(m, name) for m in group] for group in (part.samples, part.reals))
    bins = np.linspace(0, max(*synthetic, *real, 1e-6), 41)

    def draw(axes) -> None:
        for values, style in ((synthetic, {"color": ACCENT, "alpha": 0.75}),
                              (real, {"histtype": "step", "color": INK})):
            axes.hist(values, bins, weights=np.full(len(values), 1 / len(values)), **style)
        axes.set(xlabel=label, ylabel="share of the scars", xlim=(0, bins[-1]))
    return draw


def _pairs(pairs: Sequence[Pair]) -> str:
    return section("Nearest to a training patient",
                   "".join(picture(_caption(p.match), _strip(p)) for p in pairs), (
        "Suspicious ones first, the others are in the table below. Synthetic scar; the part that "
        "is compared; the training crop, moved, turned and mirrored to where it is most alike, "
        "which need not be its scar; their difference there, blue below and red above. "
        f"{PRIVATE}"))


def _caption(match: Match) -> str:
    return (f"In {match.case}, slice {match.slice}; nearest: {match.nearest_case}, slice "
            f"{match.nearest_slice}. Distance {match.distance:.3f}, next patients "
            f"{match.reference:.3f}, ratio {match.ratio:.2f}, lowest of real scars "
            f"{match.bound:.2f}{'; suspicious' if match.flagged else ''}.")


def _strip(pair: Pair) -> bytes:
    """Four crops side by side as a PNG without text, so that it suits any background."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    image, mask = pair.sample.image, pair.sample.mask
    low, high = np.percentile(image, (1, 99.5))
    synthetic, other = (_grey((a - low) / max(high - low, 1e-6)) for a in (image, pair.aligned))
    outlined = synthetic.copy()
    outlined[ndimage.binary_dilation(big := _zoomed(mask)) & ~big] = RIM
    change = np.where(mask, image - pair.aligned, 0) / max(high - low, 1e-6)
    coloured = (colormaps["coolwarm"](_zoomed(change + 0.5))[..., :3] * 255).astype(np.uint8)
    file = io.BytesIO()
    imsave(file, np.hstack([synthetic, outlined, other, coloured]), format="png")
    return file.getvalue()


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat((_zoomed(values).clip(0, 1) * 255).astype(np.uint8)[..., None], 3, axis=2)


def _zoomed(values: np.ndarray) -> np.ndarray:
    return values.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def _varied(part: Diversity) -> str:
    body = [f"<tr><td>{escape(MEASURES[name][0].format(getattr(part, name)))}</td>"
            f"<td>{bound:.0%}</td><td>{_outcome(name not in part.failed)}</td></tr>"
            for name, bound in part.bounds.items()]
    return section("Does it vary, and follow what is asked?",
                   table(["found", "at least", ""], body), (
        "Some requests are asked anew: with other seeds, with another contrast, and with the same "
        "seed for another scar in the same slice. Two seeds are held against the texture of real "
        f"scars, {part.texture:.3f} (standard deviation after a smooth version is subtracted): at "
        "100 % they differ as two scars of the same form with independent texture would."))


def _rows(title: str, matches: Iterable[Match]) -> str:
    rows = [asdict(m) for m in matches]
    body = ["<tr>" + "".join(f"<td>{_cell(v)}</td>" for v in row.values()) + "</tr>"
            for row in rows]
    head = [name.replace("_", " ") for name in rows[0]]
    return (f"<details><summary>{escape(title)} ({len(rows)} rows)</summary>{table(head, body)}"
            "</details>")


def _cell(value) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return number(value) if isinstance(value, float) else escape(str(value))

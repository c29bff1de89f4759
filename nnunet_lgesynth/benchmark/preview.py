"""A gallery of a training's pool: every slice that was painted, with its verdict.

As one HTML page without outside references, filtered by kind, verdict and AHA segment, or as one
PNG. A refused slice is shown as it is served: the source's own, since its drafts are not kept.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries
from tqdm import tqdm

from nnunet_lgesynth.benchmark.page import PRIVATE, write_page
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import replacing
from nnunet_lgesynth.generators.subject import Subject, read_subjects
from nnunet_lgesynth.pool.store import read_manifest

__all__ = ["Tile", "fold_of_pool", "preview", "tiles"]

MARGIN = 10              # pixels around the heart
ZOOM = 3
COLUMNS = 6              # of the PNG
OUTLINE, CORE_OUTLINE = (255, 157, 46), (54, 201, 255)     # scar, no-reflow

CONTROLS = """
<style>.tiles{display:flex;flex-wrap:wrap;gap:1rem}.tiles figure{margin:0;flex:0 1 18rem}
.tiles figure[hidden]{display:none}.bar{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}
.no figcaption b{color:#c0392b}</style>
<div class="bar">KINDS VERDICTS SEGMENTS<span id="count"></span></div>"""
SCRIPT = """
<script>
const all=[...document.querySelectorAll(".tiles figure")];
const menus=[...document.querySelectorAll("select")];
function filter(){const[kind,verdict,segment]=menus.map(m=>m.value);let shown=0;
for(const f of all){const d=f.dataset;f.hidden=!((!kind||d.kind===kind)
&&(!verdict||d.verdict.split(" ").includes(verdict))
&&(!segment||d.segments.split(" ").includes(segment)));shown+=!f.hidden}
document.getElementById("count").textContent=shown+" of "+all.length+" slices"}
menus.forEach(m=>m.addEventListener("change",filter));filter();
</script>"""


@dataclass(frozen=True)
class Tile:
    """One painted slice."""

    case: str
    source: str
    kind: str                    # "scar" or "healthy"
    slice: int
    accepted: bool
    failed: tuple[str, ...]      # names of the checks it failed
    segments: tuple[int, ...]    # AHA segments with scar in it as it is served
    caption: str
    checks: str                  # values of the checks, readable
    picture: np.ndarray          # (Y, 3 X, 3) uint8: source, sample, sample with outline


def preview(pool: Path, out: Path, most: int) -> int:
    """Write the gallery of the newest `most` cases of a pool; returns how many slices it shows."""
    if out.suffix.lower() not in (".html", ".png"):
        raise UserError(f"-o must end in .html or .png, not {out.name!r}.")
    shown = list(tiles(pool, most))
    if not shown:
        raise UserError(f"The pool {pool} holds no case; it fills while its training runs.")
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_png(out, shown) if out.suffix.lower() == ".png" else _write_html(out, pool, shown)
    return len(shown)


def fold_of_pool(pool: Path) -> Fold:
    """The fold that a pool's training trains, from nnU-Net's names of its folders."""
    try:
        dataset, training, fold = pool.resolve().parts[-4:-1]
        _, plans, configuration = training.split("__")
        number = fold.removeprefix("fold_")
    except ValueError as error:
        raise UserError(f"{pool} is not the pool of a training; give the folder lgesynth_pool that "
                        "lies in a training's fold_k folder.") from error
    return Fold.open(dataset, configuration, int(number) if number.isdigit() else number, plans)


def tiles(pool: Path, most: int) -> Iterator[Tile]:
    """The painted slices of the newest `most` cases whose files are there, oldest first."""
    fold = fold_of_pool(pool)
    records = [r for r in read_manifest(pool) if r["source"] in fold.train
               and (pool / "cases" / f"{r['identifier']}.pkl").is_file()][-most:]
    cases, hearts = fold.cases_folder(pool / "cases"), {}
    for record in tqdm(records, desc="Pictures", unit="case", disable=None):
        name = record["source"]
        if name not in hearts:
            hearts[name], = read_subjects(fold, [name])
        try:
            image, labels, _, _ = cases.load_case(record["identifier"])
        except (OSError, RuntimeError):          # renewed meanwhile by a training that runs
            continue
        for z, verdict in record["verdicts"].items():
            yield _tile(record, int(z), verdict, hearts[name], np.asarray(image[:]),
                        np.asarray(labels[0]), fold)


def _tile(record: dict, z: int, verdict: dict, heart: Subject, image: np.ndarray,
          labels: np.ndarray, fold: Fold) -> Tile:
    roles = fold.info.roles
    scar = np.isin(labels[z], roles.scars)
    failed = tuple(name for name, check in verdict["checks"].items() if not check["passed"])
    checks = ", ".join(f"{name} {check['value']} ({check['bound']})"
                       for name, check in verdict["checks"].items())
    return Tile(record["identifier"], record["source"], record["kind"], z, verdict["accepted"],
                failed, tuple(int(s) for s in np.unique(heart.anatomy.segment[z][scar]) if s),
                record["captions"][str(z)], checks,
                _picture(heart, image[heart.channel, z], labels[z], z, roles))


def _picture(heart: Subject, sample: np.ndarray, labels: np.ndarray, z: int, roles) -> np.ndarray:
    source = heart.lge[z]
    rows, columns = np.nonzero(heart.anatomy.wall[z] | heart.anatomy.cavity[z])
    window = tuple(slice(max(0, int(i.min()) - MARGIN), int(i.max()) + MARGIN + 1)
                   for i in (rows, columns))
    low, high = np.percentile(source[window], (1, 99.5))
    panels = [np.kron(np.clip((shown[window] - low) / max(high - low, 1e-6), 0, 1),
                      np.ones((ZOOM, ZOOM))) for shown in (source, sample, sample)]
    rgb = [np.repeat((255 * panel).astype(np.uint8)[..., None], 3, axis=2) for panel in panels]
    for value, colour in ((roles.scar, OUTLINE), (roles.no_reflow, CORE_OUTLINE)):
        if value is not None:
            part = np.kron(labels[window] == value, np.ones((ZOOM, ZOOM))) > 0
            rgb[2][find_boundaries(part, mode="inner")] = colour
    return np.concatenate(rgb, axis=1)


def _write_html(out: Path, pool: Path, shown: Sequence[Tile]) -> None:
    failed = sorted({name for tile in shown for name in tile.failed})
    controls = CONTROLS
    for place, label, values in (
            ("KINDS", "kind", ("scar", "healthy")),
            ("VERDICTS", "verdict", ("accepted", "refused", *failed)),
            ("SEGMENTS", "AHA segment", sorted({s for tile in shown for s in tile.segments}))):
        options = "".join(f"<option>{value}</option>" for value in values)
        controls = controls.replace(place, f'<label>{label} <select><option value="">all</option>'
                                           f"{options}</select></label>")
    figures = "".join(map(_figure, shown))
    passed = sum(tile.accepted for tile in shown)
    write_page(out, f"Pool of {pool.resolve().parent.parent.name}, {pool.resolve().parent.name}", [
        f'<p class="soft">{passed} of {len(shown)} slices are accepted in the end; source, sample, '
        "and the sample with its scar outlined (no-reflow in blue). A refused slice is served as "
        f"it was. {escape(PRIVATE)}</p>", controls, f'<div class="tiles">{figures}</div>', SCRIPT])


def _figure(tile: Tile) -> str:
    verdict = "accepted" if tile.accepted else "refused"
    told = verdict + (f": {', '.join(tile.failed)}" if tile.failed else "")
    places = f", segments {' '.join(map(str, tile.segments))}" if tile.segments else ""
    return (f'<figure class="{"yes" if tile.accepted else "no"}" data-kind="{tile.kind}" '
            f'data-verdict="{escape(" ".join((verdict, *tile.failed)))}" '
            f'data-segments="{" ".join(map(str, tile.segments))}">'
            f'<img alt="{escape(tile.caption)}" src="data:image/png;base64,{_png(tile.picture)}">'
            f"<figcaption><b>{escape(told)}</b><br>{escape(tile.case)} in {escape(tile.source)}, "
            f"slice {tile.slice + 1}{places}<br>{escape(tile.caption)}<br>"
            f"<small>{escape(tile.checks)}</small></figcaption></figure>")


def _png(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="png")
    return base64.b64encode(file.getvalue()).decode()


def _write_png(out: Path, shown: Sequence[Tile]) -> None:
    pictures = [tile.picture for tile in shown]
    high, wide = (max(p.shape[axis] for p in pictures) + 2 * ZOOM for axis in (0, 1))
    columns = min(COLUMNS, len(pictures))
    sheet = np.zeros((-(-len(pictures) // columns) * high, columns * wide, 3), np.uint8)
    for k, picture in enumerate(pictures):
        top, left = k // columns * high, k % columns * wide
        sheet[top:top + picture.shape[0], left:left + picture.shape[1]] = picture
    with replacing(out) as partial:
        Image.fromarray(sheet).save(partial, format="png")

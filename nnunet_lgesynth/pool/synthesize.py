"""case -> anatomy -> request -> condition -> draft -> verdict -> accepted sample.

Each round asks for one lesion in one heart and for one region of another, scar-free heart that is
repainted but stays healthy (1:1, so that being repainted says nothing about the label). A lesion is
painted in every slice it touches. Slices that fail the quality control are drafted again, and a
sample is accepted if most of its slices pass in the end: if lesions lost slices freely, synthetic
patients would have smaller scars and more scar-free slices than real ones. Contrast and seed are
drawn once a lesion.

A 2D training meets each slice alone, so each has its own noise and verdict. A 3D training sees a
lesion through its slices: all are painted with one noise and judged as one stack, and all are kept
or drafted again, so that no lesion loses one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nnunet_lgesynth.anatomy.measure import ScarRecord
from nnunet_lgesynth.anatomy.priors import Prior
from nnunet_lgesynth.anatomy.scar import ScarSpec, Unreachable, paint_mask
from nnunet_lgesynth.config import QCConfig, UserError, config_hash
from nnunet_lgesynth.dataset.case import Case, Fold
from nnunet_lgesynth.generators.condition import Condition, Request, conditions, paste_array
from nnunet_lgesynth.generators.subject import Subject, measure_prior, read_subjects
from nnunet_lgesynth.judge.qc import Painted, Verdict, accepted_labels, examine

__all__ = ["KINDS", "Sample", "judge_hash", "kinds_for", "paint_case", "paintable_hearts",
           "prepare", "requests", "synthesize"]

KINDS = ("scar", "healthy")
DRAWS = 20      # requests drawn for a heart before it is given up
HEARTS = 50     # hearts given up in a row before the search is


@dataclass(frozen=True)
class Sample:
    """One drafted lesion (or healthy repainting) with the verdict of each of its slices."""

    kind: str                       # "scar" or "healthy"
    source: str
    case: Case                      # with the accepted slices in place
    spec: ScarSpec
    slices: tuple[int, ...]         # accepted
    verdicts: dict[int, Verdict]    # every drafted slice, of its last draft
    captions: dict[int, str]
    changed: dict[int, tuple[int, int, int, int]]   # slice -> row and column bounds
    seed: int
    passed_first: int               # slices that passed with their first draft
    accepted: bool                  # enough of its slices passed
    measured: ScarRecord | None     # the scar of the case as it will be served
    judge: str | None               # hash of its weights
    qc: str                         # hash of the quality control's settings

    def record(self, generator: str) -> dict:
        """The manifest line."""
        return {"kind": self.kind, "source": self.source, "slices": list(self.slices),
                "spec": dataclasses.asdict(self.spec), "seed": self.seed,
                "captions": {str(z): t for z, t in self.captions.items()},
                "changed": {str(z): list(b) for z, b in self.changed.items()},
                "measured": self.measured and dataclasses.asdict(self.measured),
                "verdicts": {str(z): v.as_dict() for z, v in self.verdicts.items()},
                "generator": generator, "judge": self.judge, "qc": self.qc}


def prepare(fold: Fold, name: str) -> tuple[Prior, list[Subject]]:
    """The prior fitted on the training cases' real scars, and the hearts one can paint into."""
    subjects = read_subjects(fold, fold.train)
    hearts = paintable_hearts(fold, subjects)
    return measure_prior(subjects, fold, name), hearts


def paintable_hearts(fold: Fold, subjects: Sequence[Subject]) -> list[Subject]:
    """Those with scar-free slices in at least half of their slices."""
    paintable = [s for s in subjects if s.anatomy.paintable.sum() >=
                 max(1, s.anatomy.covered.sum() // 2)]
    if not paintable:
        raise UserError(f"{fold.dataset} fold {fold.fold}: no training case has scar-free slices "
                        "with a wall around the cavity in at least half of its heart, so there is "
                        "nothing to paint into; add scar-free cases.")
    return paintable


def kinds_for(hearts: Sequence[Subject]) -> tuple[str, ...]:
    """The kinds of sample these hearts allow: healthy ones need a heart without any scar, because
    they stand for scar-free patients."""
    return KINDS if any(_scar_free(h) for h in hearts) else KINDS[:1]


def synthesize(fold: Fold, generator, prior: Prior, hearts: Sequence[Subject], judge,
               config: QCConfig, rng: np.random.Generator,
               kinds: Sequence[str] | None = None) -> Iterator[Sample]:
    """Endless drafts of the kinds in turn, accepted or not; the caller stops it.

    `kinds` defaults to all that the hearts allow. Raises `UserError` if no request fits anywhere.
    """
    streams = {k: requests(fold, prior, [h for h in hearts if k == "scar" or _scar_free(h)], config,
                           rng) for k in kinds or kinds_for(hearts)}
    while True:
        for kind, stream in streams.items():
            heart, spec, mask = next(stream)
            yield paint_case(fold, generator, heart, spec, mask, judge, config,
                             seed=int(rng.integers(2 ** 31)), healthy=kind == "healthy")


def requests(fold: Fold, prior: Prior, hearts: Sequence[Subject], config: QCConfig,
             rng: np.random.Generator) -> Iterator[tuple[Subject, ScarSpec, np.ndarray]]:
    """Endless requests: a heart drawn anew, what the prior asks for there, and its mask (Z, Y, X).

    A heart that holds nothing is passed over; raises `UserError` if no request fits anywhere.
    """
    refused = 0
    while True:
        heart = hearts[rng.integers(len(hearts))]
        request = _draw(prior, heart, config, rng)
        refused = 0 if request is not None else refused + 1
        if request is not None:
            yield heart, *request
        elif refused >= HEARTS:
            raise UserError(f"{fold.dataset} fold {fold.fold}: {HEARTS * DRAWS} scar requests in a "
                            f"row had fewer than {config.min_pixels} pixels in every slice; are "
                            "the roles right? See: lgesynth doctor")


def _scar_free(heart: Subject) -> bool:
    return not heart.anatomy.scarred.any()


def _draw(prior: Prior, heart: Subject, config: QCConfig, rng: np.random.Generator):
    for _ in range(DRAWS):
        try:
            spec = prior.draw(heart.anatomy, rng)
        except Unreachable:          # this heart is too small for all that the prior drew
            return None
        mask = paint_mask(heart.anatomy, spec)
        if ((mask > 0).sum(axis=(1, 2)) >= config.min_pixels).any():
            return spec, mask
    return None


def paint_case(fold: Fold, generator, heart: Subject, spec: ScarSpec, mask: np.ndarray, judge,
               config: QCConfig, seed: int, healthy: bool = False) -> Sample:
    """Draft one request in every slice it touches, judge each group of slices, keep the accepted.

    `mask` is (Z, Y, X) of 0, SCAR, NO_REFLOW; equal arguments give equal samples. A refused group
    is drafted again, up to `config.drafts_per_slice` times, where another draft can help.
    """
    groups = _groups(fold, mask, config)
    slices = [z for group in groups for z in group]
    request = Request(mask, spec.contrast, spec.no_reflow_contrast, healthy)
    asked = dict(zip(slices, conditions(
        heart.lge, heart.anatomy, heart.intensities, request, slices, pixels=generator.pixels,
        mm=generator.mm, feather_mm=generator.feather_mm)))
    image, labels = heart.case.image.copy(), heart.case.labels.copy()
    verdicts, changed, passed_first, pending = {}, {}, 0, groups
    for attempt in range(config.drafts_per_slice):
        if not pending:
            break
        seeds = [int(np.random.SeedSequence([seed, attempt, group[0]]).generate_state(1)[0])
                 for group in pending]
        for group, painted, after in _drafts(generator, heart, request, asked, pending, seeds,
                                             judge):
            verdict = examine(painted, fold.info.roles, config)
            verdicts.update(dict.fromkeys(group, verdict))
            if verdict.accepted:
                image[:, group] = after
                labels[0, group] = accepted_labels(painted, fold.info.roles, config)
                changed.update({z: _bounds(asked[z].weight > 0) for z in group})
        passed_first = len(changed) if attempt == 0 else passed_first
        pending = [group for group in pending if verdicts[group[0]].depends_on_draft]
    case = dataclasses.replace(heart.case, image=image, labels=labels)
    return Sample(
        "healthy" if healthy else "scar", heart.case.identifier, case, spec,
        tuple(sorted(changed)), verdicts, {z: c.caption for z, c in asked.items()}, changed, seed,
        passed_first, bool(changed) and len(changed) >= config.min_slice_share * len(slices),
        dataclasses.replace(heart, case=case).scar(fold.info.roles), judge_hash(judge),
        config_hash(config))


def _groups(fold: Fold, mask: np.ndarray, config: QCConfig) -> list[list[int]]:
    """The slices to paint, those together that share their noise and their verdict: each alone, or
    all of a lesion in a 3D training, the smallest ones included."""
    pixels = (mask > 0).sum(axis=(1, 2))
    if fold.volumetric:
        return [np.flatnonzero(pixels).tolist()] if (pixels >= config.min_pixels).any() else []
    return [[z] for z in np.flatnonzero(pixels >= config.min_pixels).tolist()]


def judge_hash(judge) -> str | None:
    """What names a judge in a manifest; None without one."""
    return None if judge is None else judge.hash


def _drafts(generator, heart: Subject, request: Request, asked: dict[int, Condition],
            groups: Sequence[list[int]], seeds: Sequence[int],
            judge) -> Iterator[tuple[list[int], Painted, np.ndarray]]:
    """One draft of each group: its slices, what the quality control sees, and (C, n, Y, X) after.
    The slices of a group have one seed."""
    slices = [z for group in groups for z in group]
    wanted = [asked[z] for z in slices]
    noise = [seed for group, seed in zip(groups, seeds) for _ in group]
    after = heart.case.image[:, slices].copy()                        # (C, all n, Y, X)
    for k, draft in enumerate(generator.drafts(wanted, noise)):
        after[heart.channel, k] = paste_array(heart.lge[slices[k]], draft, wanted[k])
    judged = (None, None) if judge is None else heart.judged(judge, slices, after)
    for group, end in zip(groups, np.cumsum([len(group) for group in groups])):
        here = slice(end - len(group), end)
        yield group, Painted(
            heart.lge[group], after[heart.channel, here], heart.labels[group], request.mask[group],
            np.stack([asked[z].weight for z in group]), request.contrast, request.healthy,
            heart.intensities, *(None if maps is None else maps[here] for maps in judged),
            request.no_reflow_contrast), after[:, here]


def _bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1

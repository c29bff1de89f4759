"""The benchmark: train what is missing, collect, compare, report.

Everything is written below one folder:

    seed_<s>/nnUNet_results/   trainings        logs/              one file a job
    cases_<dataset>.jsonl      a row a patient  trainings_<dataset>.jsonl  a summary a training
    results.json               number rows      report.html, report.md
    audits/                    of the generators, a folder each
    benchmark.json             settings, what was stated before each run, verdict, commands

A run that is interrupted goes on where it stopped, and every training is recorded as soon as it
ends. The report is of all arms that are recorded on the folds, named in this run or not: who names
fewer must not get a milder correction. An arm that should inject but did not is refused rather than
reported as "no gain".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nnunet_lgesynth.benchmark.audits import audit_generators
from nnunet_lgesynth.benchmark.claim import FILE, claim, claimed, made_of, state
from nnunet_lgesynth.benchmark.collect import collect_cases, training_summary
from nnunet_lgesynth.benchmark.compare import (
    Comparison,
    compare,
    mixed_generators,
    training_rows,
)
from nnunet_lgesynth.benchmark.external import external_cases, external_info, predict_external
from nnunet_lgesynth.benchmark.fits import check_generators, refuse_other_generator
from nnunet_lgesynth.benchmark.jobs import run_jobs, visible_gpus
from nnunet_lgesynth.benchmark.leakage import (
    refuse_known_images,
    refuse_leaky_training,
    refuse_other_run,
    refuse_overlap,
)
from nnunet_lgesynth.benchmark.markdown import audits_markdown, markdown
from nnunet_lgesynth.benchmark.pictures import case_pictures, pool_pictures
from nnunet_lgesynth.benchmark.plan import (
    check_trainers,
    commands,
    ensembles,
    is_done,
    plan,
    trainings,
)
from nnunet_lgesynth.benchmark.records import FILTERED, Records, Training, origin_of, read_rows
from nnunet_lgesynth.benchmark.report import Report, write_report
from nnunet_lgesynth.benchmark.settings import Settings, injects
from nnunet_lgesynth.benchmark.variants import REFERENCE, Variant, canonical, file_name
from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.processes import alone, sigterm_as_exit

__all__ = ["benchmark"]


def benchmark(dataset_id: int | str, configuration: str, arms: Sequence[str],
              folds: Sequence[int], seeds: int, out: str | Path, *, plans: str = "nnUNetPlans",
              preset: str = "gpu-2d", device: str = "cuda", epochs: int | None = None,
              iterations: int | None = None, images: str | Path | None = None,
              labels: str | Path | None = None, plan_only: bool = False, jobs: int = 1,
              warm_up: int | None = None, ensemble: bool = False,
              half: bool = False, collect_only: bool = False) -> dict:
    """Compare training arms on validation folds and, where given, on external images.

    Parameters
    ----------
    dataset_id : nnU-Net's dataset id or name.
    arms : "real", "paint", "lgesynth" or any trainer's class name.
    folds, seeds : which folds; how many seeds, counted from 0.
    epochs, iterations : of every arm; None leaves nnU-Net's own.
    plan_only : run nothing, return {"plan": [one shell line a missing job]}; settings and what they
        can show are written, so that they are stated before a cluster runs the lines.
    collect_only : train nothing, report what has ended.
    jobs : trainings that run at a time.
    ensemble : predict the external images with all folds together, too.
    warm_up : scarred cases that a training with synthesis waits for; None leaves the trainer's own.
    half : every arm trains in half precision on a CPU, too.

    Returns {"verdict", "sentences", "rows", "report", "results", "cases"}: the headline, all
    sentences, number rows, and the paths of the files written.
    """
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}.")
    opened = {fold: Fold.open(dataset_id, configuration, fold, plans) for fold in folds}
    first = next(iter(opened.values()), None)
    settings = Settings(
        first.dataset if first else str(dataset_id), configuration,
        tuple(map(canonical, arms)), tuple(folds), seeds, Path(out).resolve(), plans, preset,
        device, epochs, iterations, Path(images).resolve() if images else None,
        Path(labels).resolve() if labels else None, warm_up, ensemble,
        first.planar if first else configuration, True if half else None)
    refuse_overlap(opened)
    for fold in opened.values():
        for patients in {v.patients for v in map(Variant.of, settings.arms)}:
            fold.subset(patients)              # refuses more than there are
    check_trainers(settings)
    check_generators(settings, opened)
    test = _external(settings, opened)
    with sigterm_as_exit(), alone(settings.out, "benchmark"):
        claim(settings, opened)
        records = Records.below(settings.out, settings.dataset)
        everything = replace(settings, arms=(*settings.arms, *_recorded(settings, records)))
        before = state(settings, opened, test, everything.arms, sum(
            is_done(t.folder, opened[t.fold]) or records.holds(t, opened[t.fold].val)
            for t in trainings(settings)), sys.stderr if plan_only else sys.stdout)
        if plan_only:
            return {"plan": [job.staged_line() for job in plan(settings, opened, test)]}
        return _run(settings, everything, opened, test, before, None if collect_only else jobs)


def _run(settings: Settings, everything: Settings, folds: dict[int, Fold], test: dict[str, str],
         before: dict[str, list[str]], parallel: int | None) -> dict:
    """Run what is missing, `parallel` trainings at a time, none where that is None; then collect,
    compare and write. `everything` has all arms that are reported."""
    records = Records.below(settings.out, settings.dataset)

    def record(training: Training) -> None:
        _record(settings, records, training, folds[training.fold])

    refused = None
    for training in trainings(settings):
        fold = folds[training.fold]
        if is_done(training.folder, fold) and not records.holds(training, fold.val):
            try:
                record(training)
            except UserError as error:         # the others have ended, too: none of them is lost
                refused = refused or error
    if refused is not None:
        raise refused
    if parallel is not None:
        run_jobs(plan(settings, folds, test), settings.out / "logs", parallel, record,
                 visible_gpus() if settings.device == "cuda" else ())
    missing = [f"{t.arm}, fold {t.fold}, seed {t.seed}" for t in trainings(settings)
               if not records.holds(t, folds[t.fold].val)]
    check_generators(settings, folds)
    if test:
        missing += _record_external(settings, folds, records, test)
    recipes = [*((arm, settings.recipe(arm)) for arm in everything.arms),
               *((together.arm, together.recipe) for _, together in ensembles(everything))]
    rows, summaries = records.of(recipes, settings.folds)
    rows.sort(key=lambda r: everything.arms.index(r["arm"].removesuffix(FILTERED)))   # as asked
    stale = [r for r in rows if r["case"] in test and r.get("files") not in (None, test[r["case"]])]
    cases = _by_split(settings, [r for r in rows if r not in stale], folds, test)
    comparisons = {split: compare(found, settings.context(split), absent=[
        arm for arm in everything.arms if arm not in {r["arm"] for r in found}])
        for split, found in cases.items() if found or split == "validation"}
    return _write(everything, settings, folds, comparisons, cases, summaries, before, stale,
                  missing)


def _by_split(settings: Settings, rows: list[dict], folds: dict[int, Fold],
              test: dict[str, str]) -> dict[str, list[dict]]:
    """{split: its rows}, with the patients that `lgesynth.json` tells now."""
    found: dict[str, list[dict]] = {"validation": []}
    if test:
        external = external_info(settings.labels, next(iter(folds.values())))
        found |= {split: [] for split in ("external", *["ensemble"] * settings.ensemble)}
    for row in rows:
        case, split = row["case"], row["split"]
        if split in found and case in (folds[row["fold"]].val if split == "validation" else test):
            info = folds[row["fold"]].info if split == "validation" else external
            found[split].append({**row, "patient": info.patient(case)})
    return found


def _recorded(settings: Settings, records: Records) -> list[str]:
    """Further arms that are recorded on these folds with these settings."""
    held = {settings.recipe(arm) for arm in settings.arms}     # each once, under whichever name
    further = []
    for name in dict.fromkeys(r.get("arm", REFERENCE).removesuffix(FILTERED)
                              for r in read_rows(records.cases)):
        try:
            Variant.of(name)
        except UserError:
            continue                                     # another version's
        recipe = settings.recipe(name)                   # refuses where its trainer is not found
        if recipe not in held and records.of([(name, recipe)], settings.folds)[0]:
            held.add(recipe)
            further.append(name)
    return further


def _external(settings: Settings, folds: dict[int, Fold]) -> dict[str, str]:
    if not settings.images:
        return {}
    fold = next(iter(folds.values()))
    external_info(settings.labels, fold)             # refuses other meanings
    test = external_cases(settings.images, settings.labels, fold.dataset_json)
    refuse_known_images(settings.images, test, folds)
    return test


def _refuse_idle(training: Training, summary: dict) -> dict:
    if injects(training.recipe.trainer) and not summary["injected_fraction_all"]:
        raise UserError(f"Arm {training.arm}, fold {training.fold}, seed {training.seed}: not one "
                        "training patch was injected, so it is a real-only run under another name; "
                        f"see {training.folder / 'lgesynth.jsonl'} and the training log, remove "
                        f"{training.folder} and run again.")
    return summary


def _record(settings: Settings, records: Records, training: Training, fold: Fold) -> None:
    patients = training.recipe.patients
    refuse_leaky_training(training, fold.subset(patients))
    summary = {**_refuse_idle(training, training_summary(training)),
               "made_of": made_of(fold, patients)}
    refuse_other_run(training)
    refuse_other_generator(settings, training)
    truth = fold.folder.parent / "gt_segmentations"      # what nnU-Net itself scores against
    records.add(collect_cases(training, training.predictions, truth, fold.val, fold.raw_info,
                              fold.dataset_json["file_ending"], ignore=_ignored(fold)), [summary])


def _record_external(settings: Settings, folds: dict[int, Fold], records: Records,
                     test: dict[str, str]) -> list[str]:
    """Predict and score the external images with each fold, and where asked with all together;
    returns what is missing. The trainings are recorded again, so that all rows of one are of one
    network, also where it was repeated."""
    missing, again = [], set()
    groups = [([t], t, f"fold_{t.fold}", "external") for t in trainings(settings)]
    groups += [(members, together, "folds_" + "+".join(map(str, together.recipe.ensemble)),
                "ensemble") for members, together in ensembles(settings)]
    fold = next(iter(folds.values()))
    ending, info = fold.dataset_json["file_ending"], external_info(settings.labels, fold)
    for members, training, name, split in groups:
        recorded = records.holds(training, test, split) and not records.changed(
            training, test, split)
        if recorded:
            continue
        if not all(is_done(t.folder, folds[t.fold]) for t in members):
            if not records.holds(training, test, split):       # else they are told as changed
                missing.append(f"{training.arm}, {name.replace('_', ' ')}, seed {training.seed}, "
                               "on the external images")
            continue
        for member in members:
            if member.folder not in again:
                _record(settings, records, member, folds[member.fold])
                again.add(member.folder)
        out = (settings.out / f"seed_{training.seed}" / "external" / file_name(training.arm) / name)
        predict_external([t.folder for t in members], settings.images, test, out,
                         fold.dataset_json, settings.device)
        records.add({**row, "files": test[row["case"]]} for row in collect_cases(
            training, out, settings.labels, test, info, ending, split, _ignored(fold)))
    return missing


def _ignored(fold: Fold) -> int | None:
    """The value of nnU-Net's ignore label."""
    return fold.dataset_json["labels"].get("ignore")


def _write(everything: Settings, settings: Settings, folds: dict[int, Fold],
           comparisons: dict[str, Comparison], cases: dict[str, list[dict]], summaries: list[dict],
           before: dict[str, list[str]], stale: list[dict], missing: list[str]) -> dict:
    """`everything` has all arms that are reported, `settings` those that were asked for; `stale`
    are rows of other external files than there are now, `missing` is what has not ended."""
    context = settings.context("validation")
    rows = [r for c in comparisons.values() for r in c.rows] + training_rows(summaries, context)
    sentences = [*comparisons["validation"].verdict, *mixed_generators(summaries)]
    if missing:
        sentences = [f"Preliminary, not all has ended. {sentences[0]}", *sentences[1:],
                     f"Not ended yet, so in no number: {'; '.join(missing)}."]
    left_out = sorted({f"{r['case']} by {r['arm']}, fold {r['fold']}, seed {r['seed']}"
                       for r in stale if not r["arm"].endswith(FILTERED)})
    if left_out:
        path = Records.below(settings.out, settings.dataset).cases
        sentences.append("Left out, scored before external files were changed: "
                         f"{'; '.join(left_out)}. Name these arms, folds and seeds again; where "
                         f"their trainings are gone, remove their rows from {path.name} first.")
    comparisons = {**comparisons,
                   "validation": replace(comparisons["validation"], verdict=sentences)}
    origin = origin_of(summaries)
    lines = [settings.command(), *commands(everything, folds)]
    hashes = {"settings": {k: v for k, v in claimed(settings.out).items() if " of " in k},
              "arms": {arm: everything.recipe(arm).hash for arm in everything.arms},
              "generators": {f"{s['arm']}, fold {s['fold']}, seed {s['seed']}": s["generators"]
                             for s in summaries if s.get("generators")}}
    paths = {"results": settings.out / "results.json", "report": settings.out / "report.html",
             "cases": Records.below(settings.out, settings.dataset).cases}
    write_json(paths["results"], rows)
    audits = audit_generators(everything)
    write_json(settings.out / FILE, {
        "settings": claimed(settings.out), "before": before, "audits": audits,
        "verdict": sentences, "commands": lines, "hashes": hashes, **origin})
    (settings.out / "report.md").write_text("\n".join(
        [*(markdown(settings.split_name(split), c, before[split])
           for split, c in comparisons.items()), audits_markdown(audits)]))
    write_report(paths["report"], Report(
        f"{settings.dataset}, {settings.configuration}: {' / '.join(everything.arms)}",
        {settings.split_name(split): c for split, c in comparisons.items()},
        {settings.split_name(split): stated for split, stated in before.items()},
        {settings.split_name(split): [r for r in rows if not r["arm"].endswith(FILTERED)]
         for split, rows in cases.items()},
        summaries, audits, lines, hashes, origin["versions"], origin["device"], origin["date"],
        {**case_pictures(trainings(settings), folds, comparisons["validation"].patients,
                         settings.out / "pictures"),
         **pool_pictures([t for t in trainings(settings) if injects(t.recipe.trainer)], folds,
                         settings.out / "pictures")}))
    return {"verdict": sentences[0], "sentences": sentences, "rows": rows, **paths}

"""The benchmark: train what is missing, collect, compare, report.

Everything is written below one folder:

    seed_<s>/nnUNet_results/   trainings        logs/              one file a job
    cases_<dataset>.jsonl      per-case rows    results.json       number rows
    benchmark.json             settings, verdict, trainings        report.html

A run that is interrupted goes on where it stopped. An arm that should inject but did not is refused
rather than reported as "no gain".
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from nnunet_lgesynth.benchmark.collect import (
    FILTERED,
    Training,
    collect_cases,
    merge_cases,
    package_commit,
    training_summary,
)
from nnunet_lgesynth.benchmark.compare import Comparison, compare, training_rows
from nnunet_lgesynth.benchmark.external import external_cases, predict_external
from nnunet_lgesynth.benchmark.pictures import pool_pictures
from nnunet_lgesynth.benchmark.plan import (
    Job,
    Settings,
    check_generators,
    injects,
    plan,
    training_job,
    trainings,
)
from nnunet_lgesynth.benchmark.report import Report, write_report
from nnunet_lgesynth.config import UserError, write_json
from nnunet_lgesynth.dataset.case import Fold, nnunet_path

__all__ = ["benchmark", "run", "run_jobs"]


def benchmark(dataset_id: int | str, configuration: str, arms: Sequence[str],
              folds: Sequence[int], seeds: int, out: str | Path, *, plans: str = "nnUNetPlans",
              preset: str = "gpu-2d", device: str = "cuda", epochs: int | None = None,
              iterations: int | None = None, images: str | Path | None = None,
              labels: str | Path | None = None, plan_only: bool = False, jobs: int = 1) -> dict:
    """Compare training arms on validation folds and, where given, on external images.

    Parameters
    ----------
    dataset_id : nnU-Net's dataset id or name.
    arms : "real", "paint", "lgesynth" or any trainer's class name.
    folds, seeds : which folds; how many seeds, counted from 0.
    epochs, iterations : of every arm; None leaves nnU-Net's own.
    plan_only : run and write nothing, return {"plan": [one shell line a missing job]}.
    jobs : trainings that run at a time.

    Returns {"verdict", "sentences", "rows", "report", "results", "cases"}: the headline, all
    sentences, number rows, and the paths of the files written.
    """
    opened = {fold: Fold.open(dataset_id, configuration, fold, plans) for fold in folds}
    settings = Settings(
        next(iter(opened.values())).dataset if opened else str(dataset_id), configuration,
        tuple(arms), tuple(folds), seeds, Path(out).resolve(), plans, preset, device, epochs,
        iterations, Path(images).resolve() if images else None,
        Path(labels).resolve() if labels else None)
    check_generators(settings, opened)
    _external(settings, opened)
    if plan_only:
        return {"plan": [job.line() for job in plan(settings, opened)]}
    return run(settings, opened, jobs)


def run(settings: Settings, folds: dict[int, Fold], parallel: int = 1) -> dict:
    """Run what is missing, then collect, compare and write; see `benchmark`."""
    ending = next(iter(folds.values())).dataset_json["file_ending"]
    test = _external(settings, folds)
    _claim(settings)
    run_jobs(plan(settings, folds), settings.out / "logs", parallel)
    check_generators(settings, folds)
    summaries = [_refuse_idle(t, training_summary(t)) for t in trainings(settings)]
    cases = _collect(settings, folds, test, ending)
    comparisons = {split: compare(rows, _context(settings, split)) for split, rows in cases.items()}
    return _write(settings, folds, comparisons, cases, summaries)


def _external(settings: Settings, folds: dict[int, Fold]) -> list[str]:
    if not settings.images:
        return []
    ending = next(iter(folds.values())).dataset_json["file_ending"]
    return external_cases(settings.images, settings.labels, ending)


def run_jobs(jobs: Sequence[Job], logs: Path, parallel: int = 1) -> None:
    """Run jobs stage by stage, `parallel` at a time, output to `logs/<name>.log`.

    After a failure the jobs that run are awaited, none is started, and `UserError` names the log.
    """
    logs.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(jobs), desc="benchmark", unit="job", disable=not jobs) as bar:
        for stage in sorted({job.stage for job in jobs}):
            with ThreadPoolExecutor(max(1, parallel)) as pool:
                waiting = [pool.submit(_run_job, j, logs) for j in jobs if j.stage == stage]
                try:
                    for done in as_completed(waiting):
                        bar.set_postfix_str(done.result())
                        bar.update()
                finally:
                    for future in waiting:
                        future.cancel()


def _run_job(job: Job, logs: Path) -> str:
    log = logs / f"{job.name}.log"
    with open(log, "a") as file:
        file.write(f"$ {job.line()}\n")
        file.flush()
        code = subprocess.run(job.argv, env={**os.environ, **job.env}, stdout=file,
                              stderr=subprocess.STDOUT, check=False).returncode
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]
        raise UserError(f"{job.name} failed with exit code {code} ({last.strip()[:300]}); see "
                        f"{log}, then run the benchmark again: it goes on where it stopped.")
    return job.name


def _claim(settings: Settings) -> None:
    """Write the settings, or refuse a folder that holds a benchmark with other ones."""
    settings.out.mkdir(parents=True, exist_ok=True)
    path = settings.out / "benchmark.json"
    if not path.is_file():
        write_json(path, {"settings": settings.fixed()})
        return
    before = json.loads(path.read_text())["settings"]
    changed = [f"{k} {before.get(k)} -> {v}" for k, v in settings.fixed().items()
               if before.get(k) != v]
    if changed:
        raise UserError(f"{settings.out} holds a benchmark with other settings "
                        f"({', '.join(changed)}); choose another output folder with -o.")


def _refuse_idle(training: Training, summary: dict) -> dict:
    if injects(training.recipe.trainer) and not summary["injected_fraction_all"]:
        raise UserError(f"Arm {training.arm}, fold {training.fold}, seed {training.seed}: not one "
                        "training patch was injected, so it is a real-only run under another name; "
                        f"see {training.folder / 'lgesynth.jsonl'} and the training log, remove "
                        f"{training.folder} and run again.")
    return summary


def _collect(settings: Settings, folds: dict[int, Fold], test: list[str],
             ending: str) -> dict[str, list[dict]]:
    """Per-case rows of this benchmark by split, after merging them into the cases file."""
    labels, new = nnunet_path("nnUNet_raw") / settings.dataset / "labelsTr", []
    for training in trainings(settings):
        fold = folds[training.fold]
        new += collect_cases(training, training.predictions, labels, fold.val, fold.info.roles,
                             ending)
        if test:
            out = (settings.out / f"seed_{training.seed}" / "external" / training.arm
                   / f"fold_{training.fold}")
            predict_external(training.folder, settings.images, test, out, ending,
                             len(fold.dataset_json["channel_names"]), settings.device)
            new += collect_cases(training, out, settings.labels, test, fold.info.roles, ending,
                                 "external")
    recipes = {(r["arm"], r["config_hash"]) for r in new}
    merged = merge_cases(settings.out / f"cases_{settings.dataset}.jsonl", new)
    wanted = [r for r in merged if (r["arm"], r["config_hash"]) in recipes
              and r["fold"] in settings.folds]
    return {split: [r for r in wanted if r["split"] == split]
            for split in dict.fromkeys(r["split"] for r in new)}


def _write(settings: Settings, folds: dict[int, Fold], comparisons: dict[str, Comparison],
           cases: dict[str, list[dict]], summaries: list[dict]) -> dict:
    context = _context(settings, "validation")
    rows = [r for c in comparisons.values() for r in c.rows] + training_rows(summaries, context)
    sentences = comparisons["validation"].verdict
    commands = [settings.command(), *(training_job(settings, t).line()
                                      for t in trainings(settings))]
    paths = {name: settings.out / file for name, file in (
        ("results", "results.json"), ("cases", f"cases_{settings.dataset}.jsonl"),
        ("report", "report.html"))}
    write_json(paths["results"], rows)
    write_json(settings.out / "benchmark.json", {
        "settings": settings.fixed(), "verdict": sentences, "trainings": summaries,
        "commands": commands, "machine": _machine(settings.device), "versions": _versions()})
    write_report(paths["report"], Report(
        f"{settings.dataset}, {settings.configuration}: {' / '.join(settings.arms)}",
        {_split_name(settings, split): c for split, c in comparisons.items()},
        [r for group in cases.values() for r in group if not r["arm"].endswith(FILTERED)],
        summaries, commands, _versions(), _machine(settings.device), context["date"],
        pool_pictures([t for t in trainings(settings) if injects(t.recipe.trainer)], folds,
                      settings.out / "pictures")))
    return {"verdict": sentences[0], "sentences": sentences, "rows": rows, **paths}


def _context(settings: Settings, split: str) -> dict:
    return {"benchmark": "arms", "dataset": settings.dataset,
            "split": _split_name(settings, split), "device": _machine(settings.device),
            "command": settings.command(), "versions": _versions(),
            "date": date.today().isoformat()}


def _split_name(settings: Settings, split: str) -> str:
    folds = "+".join(map(str, settings.folds))
    return f"{split}, fold{'s' * (len(settings.folds) > 1)} {folds}"


def _versions() -> dict[str, str]:
    names = ("nnunetv2", "torch", "diffusers", "transformers", "numpy", "scipy")
    found = {"nnunet_lgesynth": package_commit(), "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine(device: str) -> str:
    text = f"{device}, {os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"
    if device == "cuda":
        import torch

        text += f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return text

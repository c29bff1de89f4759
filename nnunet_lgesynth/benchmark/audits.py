"""The audits of a benchmark's generators, made once each and kept in `audits/<preset>_fold_<k>`: a
gain by a generator that repeats training scars is no gain by synthesis."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from nnunet_lgesynth.benchmark.audit import Audit, audit
from nnunet_lgesynth.benchmark.audit_report import write_audit
from nnunet_lgesynth.benchmark.fits import Generator, generators
from nnunet_lgesynth.benchmark.settings import Settings
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.files import make_folder
from nnunet_lgesynth.generators.fitted import is_fitted, read_fitted
from nnunet_lgesynth.provenance import machine, versions

__all__ = ["AUDITED", "audit_generators", "audit_into"]

AUDITED = 200            # scars that are painted and compared


def audit_into(out: Path, fold: Fold, generator, n: int, seed: int, device: str,
               command: Sequence[str]) -> tuple[Audit, Path]:
    """Audit a generator, write audit.json and audit.html into a folder; returns the audit and its
    page. `UserError` where too few training patients have a scar."""
    make_folder(out)
    found = audit(fold, generator, n, seed)
    return found, write_audit(
        out, found, f"{fold.dataset}, fold {fold.fold}: audit of {generator.name}",
        {"command": shlex.join(command), "versions": versions(), "machine": machine(device),
         "date": date.today().isoformat()})


def audit_generators(settings: Settings) -> list[dict]:
    """Of each fold's generators {"generator", "passed", "sentences"}, as audited before unless
    another one was fitted since; `passed` is None where it could not be audited now. What is
    neither fitted here nor audited is left out."""
    found = []
    for generator in generators(settings):
        path = settings.out / "audits" / generator.name / "audit.json"
        try:
            told = _told(path)
            if (is_fitted(generator.folder)
                    and told.get("hash") != read_fitted(generator.folder, "hash")["hash"]):
                _audit(settings, generator, path.parent)
                told = _told(path)
        except Exception as error:         # whatever it is, the trainings are done: report them
            told = {"passed": None, "sentences": [f"Not audited: {error}"], "notes": []}
        if told:
            found.append({"generator": generator.name, "passed": told["passed"],
                          "sentences": [*told["sentences"], *told["notes"]]})
    return found


def _told(path: Path) -> dict:
    """An earlier audit; nothing where there is none that can be read."""
    try:
        told = json.loads(path.read_text())
        return told if {"passed", "hash", "sentences", "notes"} <= set(told) else {}
    except (OSError, ValueError, TypeError):
        return {}


def _audit(settings: Settings, needed: Generator, out: Path) -> None:
    from nnunet_lgesynth.pool.generator import load_inpainter, usable_device

    command = ["env", f"LGESYNTH_GENERATOR={needed.folder}", "lgesynth", "audit",
               "-d", settings.dataset, "-c", settings.planar, "-f", str(needed.fold),
               "-p", settings.plans,
               *(["--patients", str(needed.patients)] if needed.patients else []),
               "-n", str(AUDITED), "--seed", "0", "-device", settings.device, "-o", out.name]
    fold = Fold.open(settings.dataset, settings.planar, needed.fold, settings.plans)
    fold = fold.subset(needed.patients)
    generator = load_inpainter(needed.folder, fold, usable_device(settings.device))
    audit_into(out, fold, generator, AUDITED, 0, settings.device, command)

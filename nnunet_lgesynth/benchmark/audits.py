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
from nnunet_lgesynth.benchmark.plan import fold_generator
from nnunet_lgesynth.benchmark.settings import Settings, needs_generator
from nnunet_lgesynth.benchmark.variants import Variant
from nnunet_lgesynth.config import UserError, make_folder, write_json
from nnunet_lgesynth.dataset.case import Fold
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
    another one was fitted since; `passed` is None where it could not be audited. What is neither
    fitted here nor audited is left out."""
    found = []
    for patients in dict.fromkeys(v.patients for v in map(Variant.of, settings.arms)
                                  if needs_generator(v.trainer)):
        for number in settings.folds:
            folder = fold_generator(settings, number, patients)
            name = f"{folder.parent.name.split('__')[0].removeprefix('LGESynth_')}_{folder.name}"
            path = settings.out / "audits" / name / "audit.json"
            told = json.loads(path.read_text()) if path.is_file() else None
            if is_fitted(folder):
                current = read_fitted(folder, "hash")["hash"]
                if told is None or told["hash"] != current:
                    told = _audited(settings, folder, number, patients, path, current)
            if told is not None:
                found.append({"generator": name, "passed": told["passed"],
                              "sentences": [*told["sentences"], *told["notes"]]})
    return found


def _audited(settings: Settings, folder: Path, number: int, patients: int | None, path: Path,
             current: str) -> dict:
    from nnunet_lgesynth.pool.generator import load_inpainter, usable_device

    command = ["lgesynth", "audit", "-d", settings.dataset, "-c", settings.planar, "-f",
               str(number), "-p", settings.plans, "-n", str(AUDITED), "--seed", "0", "-device",
               settings.device, "-o", path.parent.name]
    try:
        fold = Fold.open(settings.dataset, settings.planar, number, settings.plans).subset(patients)
        generator = load_inpainter(folder, fold, usable_device(settings.device))
        audit_into(path.parent, fold, generator, AUDITED, 0, settings.device, command)
    except UserError as error:                 # a benchmark is none the worse for it
        make_folder(path.parent)
        write_json(path, {"passed": None, "hash": current, "sentences": [f"Not audited: {error}"],
                          "notes": []})
    return json.loads(path.read_text())

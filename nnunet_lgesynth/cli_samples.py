"""The commands that show what the plugin sees and paints: `anatomy`, `synthesize` and `audit`."""

from __future__ import annotations

import json
from pathlib import Path

from nnunet_lgesynth.cli_flags import device_flag, fold_flags
from nnunet_lgesynth.config import UserError

__all__ = ["add_anatomy", "add_audit", "add_preview", "add_synthesize"]

PRIORS = ("ellipsoid", "fitted", "midwall", "patchy", "sector", "smile", "subepicardial")


def add_anatomy(commands) -> None:
    parser = commands.add_parser("anatomy", help="draw a case's AHA segments, to check them")
    parser.add_argument("-d", required=True, metavar="DATASET", help="dataset id or name")
    parser.add_argument("--case", required=True, metavar="ID", help="a labelled case")
    parser.add_argument("-o", required=True, metavar="PNG", help="picture to write")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_anatomy)


def _anatomy(arguments) -> int:
    import numpy as np

    from nnunet_lgesynth.anatomy.heart import describe
    from nnunet_lgesynth.dataset.case import check_roles
    from nnunet_lgesynth.dataset.raw_case import RawCase, raw_folder
    from nnunet_lgesynth.dataset.roles import read_info
    from nnunet_lgesynth.files import read_json
    from nnunet_lgesynth.generators.subject import require_lv
    from nnunet_lgesynth.pool.sheet import save_anatomy

    folder = raw_folder(arguments.d)
    info = read_info(folder)
    check_roles(info, read_json(folder / "dataset.json", "lgesynth doctor"), folder.name)
    case = RawCase.read(folder, arguments.case).case
    image = case.image[info.roles.lge_channel]
    anatomy = describe(case.labels[0], info.roles, case.spacing, info.frame, image,
                       info.landmarks.get(arguments.case))
    require_lv(anatomy, info.roles, arguments.case)
    out = Path(arguments.o)
    if out.suffix.lower() != ".png":
        raise UserError(f"-o {out}: a picture's name must end in .png.")
    save_anatomy(out, anatomy, image, arguments.case)
    spread = anatomy.reference.uncertainty
    found = {"case": arguments.case, "picture": str(out),
             "slices": dict(zip(*(v.tolist() for v in np.unique(anatomy.kinds,
                                                                return_counts=True)))),
             "segments": [int(s) for s in np.unique(anatomy.segment) if s],
             "anterior_rv_insertion_from": anatomy.reference.source,
             "uncertainty_degrees": None if spread is None else round(float(np.rad2deg(spread)), 1),
             "order": anatomy.order, "order_from": anatomy.order_from,
             "long_axis_mm": [round(float(a), 3) for a in anatomy.axis],
             "notes": list(anatomy.notes)}
    print(json.dumps(found) if arguments.json else "\n".join(
        [f"Wrote {out}", *(f"  {name:27} {value}" for name, value in found.items()
                           if name != "picture")]))
    return 0


def add_synthesize(commands) -> None:
    parser = commands.add_parser("synthesize", help="paint scars as asked", description=(
        "Shares lie between 0 and 1; one value or a range LOW HIGH. What is not asked for comes "
        "from the prior. Segments are the AHA's 1 to 17."))
    fold_flags(parser)
    parser.add_argument("-n", type=int, default=1, metavar="N", help="how many (default 1)")
    parser.add_argument("--generator", default="lgesynth", metavar="NAME",
                        help="lgesynth (default; fitted for this fold) or paint")
    parser.add_argument("--segments", type=int, nargs="+", default=[], metavar="S")
    for name, text in (("burden", "share of the myocardium"),
                       ("transmurality", "share of the wall's thickness"),
                       ("no-reflow", "share of the lesion taken by a no-reflow core")):
        parser.add_argument(f"--{name}", type=float, nargs="+", metavar="SHARE", help=text)
    parser.add_argument("--prior", default="fitted", metavar="NAME",
                        help=f"who decides the rest: {', '.join(PRIORS)} (default fitted)")
    parser.add_argument("--case", metavar="ID", help="paint into this case (default: any)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", default="lgesynth_samples", metavar="DIR", help="new folder")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    device_flag(parser)
    parser.set_defaults(run=_synthesize)


def _synthesize(arguments) -> int:
    from nnunet_lgesynth.anatomy.priors import Asked, Prior
    from nnunet_lgesynth.dataset.case import Fold
    from nnunet_lgesynth.pool.generator import load_generator
    from nnunet_lgesynth.pool.request import write_samples
    from nnunet_lgesynth.pool.synthesize import prepare

    if arguments.seed < 0:
        raise UserError(f"--seed must be 0 or more, not {arguments.seed}.")
    asked = Asked(tuple(arguments.segments), *(
        _range(name, getattr(arguments, name)) for name in ("burden", "transmurality",
                                                            "no_reflow")))
    fold = Fold.open(arguments.d, arguments.c, arguments.f, arguments.p)
    if arguments.case is not None and arguments.case not in fold.train + fold.val:
        raise UserError(f"There is no case {arguments.case!r} in fold {fold.fold}; cases are "
                        f"named like {fold.train[0]!r}.")
    fitted, hearts = prepare(fold, arguments.prior)
    generator, judge = load_generator(arguments.generator, fold, arguments.device)
    cases = [arguments.case] if arguments.case is not None else [h.case.identifier for h in hearts]
    records = write_samples(fold, generator, judge, Prior(arguments.prior, fitted.records), asked,
                            cases, arguments.n, arguments.seed, Path(arguments.o))
    notes = sorted({f"note: {r['case']}: {note}" for r in records for note in r["notes"]})
    print(json.dumps(records) if arguments.json else "\n".join(
        [*map(_line, records), *notes, f"Wrote {len(records)} samples to {arguments.o}"]))
    return 0


def _range(name: str, values: list[float] | None) -> tuple[float, float] | None:
    if values is None:
        return None
    if len(values) > 2:
        raise UserError(f"--{name.replace('_', '-')} takes one share or LOW HIGH, not "
                        f"{len(values)} values.")
    return values[0], values[-1]


def _line(record: dict) -> str:
    asked, got = record["requested"], record["realised"]
    depth = "-" if asked["transmurality"] is None else f"{asked['transmurality']:.2f}"
    return (f"{record['name']}: {'accepted' if record['accepted'] else 'refused'}, "
            f"{record['slices_accepted']} of {record['slices_asked']} slices; burden "
            f"{got['burden']:.1%} (asked {asked['burden']:.1%}), transmurality "
            f"{got['transmurality']:.2f} ({depth}), no-reflow {got['no_reflow']:.0%} "
            f"({asked['no_reflow']:.0%}), segments {' '.join(map(str, got['segments']))}")


def add_preview(commands) -> None:
    parser = commands.add_parser("preview", help="a training's pool as a gallery", description=(
        "HTML: slices with verdicts, filtered by kind, verdict and AHA segment. PNG: all in one "
        "picture. Both show patient data."))
    parser.add_argument("pool", metavar="POOL", type=Path,
                        help="lgesynth_pool in the training's output folder")
    parser.add_argument("-n", type=int, default=100, metavar="N",
                        help="the newest so many cases (default 100)")
    parser.add_argument("-o", required=True, type=Path, metavar="FILE", help=".html or .png")
    parser.set_defaults(run=_preview)


def _preview(arguments) -> int:
    from nnunet_lgesynth.benchmark.preview import preview

    if arguments.n < 1:
        raise UserError(f"-n must be at least 1, not {arguments.n}.")
    slices = preview(arguments.pool, arguments.o, arguments.n)
    print(f"Wrote {slices} slices to {arguments.o}")
    return 0


def add_audit(commands) -> None:
    parser = commands.add_parser(
        "audit", help="does a generator repeat training scars, vary, and obey?",
        description="Exit code 0 if the audit is passed, 1 if not. The page shows patient data.")
    fold_flags(parser)
    parser.add_argument("-n", type=int, default=200, metavar="N", help="scars (default 200)")
    parser.add_argument("--generator", default="lgesynth", metavar="NAME",
                        help="lgesynth (default; fitted for this fold) or paint")
    parser.add_argument("--patients", type=int, metavar="N", help=(
        "the number of training patients that the generator was fitted on (default all)"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", required=True, metavar="DIR",
                        help="output folder, for audit.json and audit.html")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    device_flag(parser)
    parser.set_defaults(run=_audit)


def _audit(arguments) -> int:
    from nnunet_lgesynth.benchmark.audit_report import notes, sentences
    from nnunet_lgesynth.benchmark.audits import audit_into
    from nnunet_lgesynth.dataset.case import Fold
    from nnunet_lgesynth.pool.generator import load_generator

    fold = Fold.open(arguments.d, arguments.c, arguments.f, arguments.p).subset(arguments.patients)
    generator, _ = load_generator(arguments.generator, fold, arguments.device, judged=False)
    out = Path(arguments.o)
    command = ["lgesynth", "audit", "-d", arguments.d, "-c", arguments.c, "-f", str(arguments.f),
               "-p", arguments.p, "--generator", arguments.generator, "-n", str(arguments.n),
               *(["--patients", str(arguments.patients)] if arguments.patients else []),
               "--seed", str(arguments.seed), "-device", arguments.device, "-o", arguments.o]
    found, page = audit_into(out, fold, generator, arguments.n, arguments.seed, arguments.device,
                             command)
    print((out / "audit.json").read_text() if arguments.json else "\n".join(
        [*sentences(found), *(f"note: {note}" for note in notes(found)), f"Report: {page}"]))
    return 0 if found.passed else 1

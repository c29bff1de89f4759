"""Measure fitted generators on a fold's fixed test set: one draft a request, no retry.

    python -m benchmarks.judges -d 116 -f 4 -device cpu -o JUDGES
    python -m benchmarks.generator -d 116 -f 4 -device cpu --judges JUDGES -o generator_fold4.json

Without `--generators` the rule-based painter and the fold's fitted inpainter are measured; with it,
"paint" and any fold folders that `lgesynth fit` has written. `own` is the judge that rewards and
filters, `independent` one that never met the generator. `dice_pass` is a Dice of at least 0.6 in
the feather, `dice_pass_anywhere` in the whole slice, as published; `qc_pass` the whole quality
control, of which the bound on new scar found elsewhere is the strict part. Real scar slices are
asked for the same Dice; `_as_asked` weights their burden tertiles as the requests have them.
Pass rates and feature distances are compared with those of the first three arms, so name "paint",
the plain ControlNet and the full model first. Rows that the file holds of other arms stay, if they
are of the same requests and judges; the .csv beside it has a line for every slice and judge.
Intervals are over patients: those painted into, and for distances the real scars' as well.
Without `--judges` the own judge is the one that tuned the generator, and there is no other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import drafts as d
from benchmarks import exit_code, realism, records, result_file, testset
from benchmarks.judges import load_judges
from benchmarks.tables import table
from nnunet_lgesynth.benchmark.numbers import number_row
from nnunet_lgesynth.benchmark.statistics import interval
from nnunet_lgesynth.config import QCConfig, UserError
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.generators.fitted import preset_of, read_fitted
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.generators.subject import read_subjects
from nnunet_lgesynth.pool.generator import (
    find_inpainter,
    judge_of,
    load_inpainter,
    refuse_other_settings,
    usable_device,
)
from nnunet_lgesynth.presets import named_preset

RESAMPLES = 2000
TERTILES = ("small", "middle", "large")
IN_PLACE_SEEDS = 4
LEAST_CROPS = 8               # fewer have no distance
COMPARED = 3
PASSES = {"dice_pass": "found", "dice_pass_anywhere": "found_anywhere", "qc_pass": "accepted"}
CONTROL = ("burden_error", "segment_jaccard", "transmurality_error")


def main() -> None:
    arguments = _arguments()
    fold = testset.open_fold(arguments)
    device = usable_device(arguments.device)
    names = arguments.generators or ["paint", str(find_inpainter(fold))]
    requests = testset.read(testset.request_file(fold))[:arguments.n]
    patients = testset.patients(fold)
    judges = load_judges(arguments.judges, fold, device) if arguments.judges else \
        {"own": judge_of(Path(names[-1]), fold, device)}
    about = testset.about("generator", fold, arguments.device)
    _refuse_twice(names)
    bench = Bench(fold, patients, requests, judges, about, not arguments.quick)
    records.refuse_others(arguments.o, bench.about, len(requests))
    rows = bench.real()
    for name in names:
        rows += bench.arm(name, device)
        records.write(arguments.o, rows, bench.lines)
    print(table(rows))


def _refuse_twice(names: list[str]) -> None:
    arms = [name if name == "paint" else preset_of(Path(name)) for name in names]
    if twice := sorted({a for a in arms if arms.count(a) > 1}):
        raise UserError(f"--generators names {', '.join(twice)} twice, and rows are told apart by "
                        "preset; measure one of them into another file.")


def _arguments():
    parser = testset.fold_parser(__doc__)
    parser.add_argument("--judges", type=Path, help="folder that benchmarks.judges has filled")
    parser.add_argument("--generators", nargs="+", help='"paint" or fitted fold folders')
    parser.add_argument("-n", type=testset.count, help="only the first so many requests")
    parser.add_argument("--quick", action="store_true", help="pass rates and control errors only")
    parser.add_argument("-o", type=result_file, required=True, help="JSON file of the rows")
    return parser.parse_args()


class Bench:
    """The test set, the judges and the real scars that every generator is held against."""

    def __init__(self, fold: Fold, patients: dict, requests: Sequence, judges: dict, about: dict,
                 looks: bool):
        self.fold, self.patients, self.requests, self.judges = fold, patients, requests, judges
        hashes = {f"judge_{name}": judge.hash for name, judge in judges.items()}
        self.about = {**about, "versions": {**about["versions"], **hashes}}
        self.looks, self.qc = looks, QCConfig()
        self.roles = fold.info.roles
        self.real_rows = {n: d.judge_real(patients, j, self.roles, self.qc)
                          for n, j in judges.items()}
        everyone = dict(patients)
        everyone |= {s.case.identifier: s for s in read_subjects(fold, fold.train)}
        self.real_scars = [(h, z, m) for h in everyone.values()
                           for z, m in d.real_masks(h, self.roles)]
        asked = [r.pixels / patients[r.case].anatomy.myocardium[r.z].sum() for r in requests]
        self.cuts = np.quantile(asked, [1 / 3, 2 / 3])
        self.real_of = np.array([h.case.identifier for h, _, _ in self.real_scars])
        self.real_features = self._real_features() if looks else None
        self.compared: dict[str, dict[str, np.ndarray]] = {}       # values of the first arms
        self.lines: list[dict] = []                                # one a slice and judge

    def _real_features(self) -> np.ndarray:
        return realism.features([realism.window(h.intensities.apply(h.lge[z]), m[z] > 0)
                                 for h, z, m in self.real_scars])

    def _about(self, arm: str, preset: str | None, part: str | None = None) -> dict:
        split = self.about["split"] + (f", {part} burdens" if part else "")
        return {**self.about, "arm": arm, "preset": preset, "split": split}

    def real(self) -> list[dict]:
        """Real scar slices of the validation patients, by both judges."""
        rows, here = [], self._about("real", None)
        for name, found in self.real_rows.items():
            rows += self._passed(here, name, found)
            self.lines += records.of_slices("real", name, found)
            if found:
                passed, tertile = np.array([r["found"] for r in found]), self._tertiles(found)
                parts = [passed[tertile == k].mean() for k in np.unique(tertile)]
                rows.append(number_row(here, f"dice_pass_{name}_as_asked", float(np.mean(parts)),
                                       n=len(found), unit="fraction"))
            if name == "own":
                rows += self._control(here, found)
        if self.looks:
            val = self._validation()
            rows += self._distances(here, self.real_features[~val], self.real_features[val],
                                    self.real_of[~val], self.real_of[val])
        return rows

    def _validation(self) -> np.ndarray:
        """Which of the real scars are of validation patients."""
        return np.isin(self.real_of, list(self.patients))

    def _tertiles(self, found: list[dict]) -> np.ndarray:
        return np.digitize([r["burden"] for r in found], self.cuts)

    def arm(self, name: str, device) -> list[dict]:
        """All rows of one generator; `UserError` where it has seen the validation patients, has
        other settings than the preset of its name, or was tuned by another judge than `own`."""
        if name == "paint":
            return self.measure(Painter(), None, name)
        folder = Path(name)
        generator, preset = load_inpainter(folder, self.fold, device), preset_of(folder)
        told = read_fitted(folder, "config", "reward", "minutes")
        named = named_preset(preset)
        if named is not None:
            refuse_other_settings(told["config"], named, folder)
        own, reward = self.judges["own"], told["reward"]
        if reward is not None and reward["hash"] != own.hash:
            raise UserError(f"{folder} was tuned by another judge than {own.source}, whose pass "
                            f"rate would be called its own; fit with --reward {own.source.parent}")
        return self.measure(generator, preset, preset, sum(told["minutes"].values()))

    def measure(self, generator, preset: str | None, arm: str,
                fit_minutes: float | None = None) -> list[dict]:
        """All rows of a generator in memory."""
        here = self._about(arm, preset)
        if hasattr(generator, "config"):
            here |= {"seeds": [generator.config.seed],
                     "versions": {**here["versions"], "generator": generator.hash}}
        asked = d.requests_of(self.requests, self.patients, generator)
        generator.drafts([asked[0].condition], [0])          # warm up
        scars, seconds = d.draft(generator, asked)
        rows, passed, by_judge, values = [], 0, {}, {}
        for judge, segmenter in self.judges.items():
            found, spent = d.judge_drafts(scars, segmenter, self.roles, self.qc)
            by_judge[judge] = found
            self.lines += records.of_slices(arm, judge, found)
            rows += self._passed(here, judge, found)
            values |= {f"{metric}_{judge}": np.array([r[key] for r in found], float)
                       for metric, key in PASSES.items()}
            if judge == "own":
                rows += self._control(here, found) + self._realised(here, found)
                seconds += spent
                passed = sum(r["accepted"] for r in found)
        patients, n = [r.case for r in self.requests], len(scars)
        for other, theirs in self.compared.items():
            rows += [_row(here, f"{metric}_diff_vs_{other}", mine - theirs[metric], patients,
                          np.mean, "fraction") for metric, mine in values.items()]
        if {"own", "independent"} <= set(by_judge):
            rows += self._labels(here, scars, by_judge["own"], by_judge["independent"])
        rows += [number_row(here, "seconds_per_draft", seconds / n, n=n, unit="s, judge included"),
                 number_row(here, "seconds_per_accepted", seconds / max(passed, 1), n=n,
                            unit="s, judge included"),
                 number_row(here, "changed_outside", sum(s.changed_outside for s in scars), n=n,
                            unit="pixels")]
        if fit_minutes is not None:
            rows.append(number_row(here, "fit_minutes", fit_minutes, n=1, unit="minutes"))
        if self.looks:
            values["features"] = realism.features([realism.window(s.sample, s.request > 0)
                                                   for s in scars])
            rows += self._looks(here, generator, values, patients)
        if len(self.compared) < COMPARED:
            self.compared[arm] = values
        return rows

    def _passed(self, here: dict, judge: str, found: list[dict]) -> list[dict]:
        """Pass rates, over all and by burden tertile of the requests."""
        tertile, rows = self._tertiles(found), []
        for metric, key in PASSES.items():
            if not found or found[0][key] is None:
                continue
            passed = np.array([r[key] for r in found], float)
            patients = np.array([r["case"] for r in found])
            rows.append(_row(here, f"{metric}_{judge}", passed, patients, np.mean, "fraction"))
            rows += [_row({**here, "split": f"{here['split']}, {name} burdens"},
                          f"{metric}_{judge}", passed[tertile == k], patients[tertile == k],
                          np.mean, "fraction")
                     for k, name in enumerate(TERTILES) if (tertile == k).any()]
        return rows

    def _control(self, here: dict, found: list[dict]) -> list[dict]:
        return [_row(here, metric, np.array([r[metric] for r in found]),
                     [r["case"] for r in found], np.median, "median") for metric in CONTROL]

    def _labels(self, here: dict, scars: list, own: list[dict], other: list[dict]) -> list[dict]:
        """Which label of an accepted draft an independent judge agrees with more: the intended
        one, or the one that the own judge predicts (`QCConfig.label`)."""
        kept = [k for k, r in enumerate(own) if r["accepted"]]
        if not kept:
            return []
        labels = {"intended": [s.request > 0 for s in scars], "predicted": [r["mask"] for r in own]}
        return [_row(here, f"label_dice_{name}", np.array(
            [d.dice(masks[k], other[k]["mask"]) for k in kept]),
            [scars[k].heart.case.identifier for k in kept], np.mean, "mean")
            for name, masks in labels.items()]

    def _realised(self, here: dict, found: list[dict]) -> list[dict]:
        """Kolmogorov-Smirnov distance of what is asked and realised to all real scars of the fold;
        of the burden that the own judge finds, to what it finds in the real scars it judged."""
        real = {"contrast": [], "burden": [],
                "found_burden": [r["found_burden"] for r in self.real_rows["own"]]}
        for heart, z, mask in self.real_scars:
            values, wall = heart.intensities.apply(heart.lge[z]), heart.anatomy.myocardium[z]
            real["contrast"].append(d.contrast(values, mask[z]))
            real["burden"].append((mask[z] > 0).sum() / wall.sum())
        asked = {"asked_contrast": "contrast", "contrast": "contrast", "burden": "burden",
                 "found_burden": "found_burden"}
        return [number_row(here, f"ks_{mine}", stats.ks_2samp([r[mine] for r in found],
                                                              real[theirs]).statistic,
                           n=len(found), unit="KS distance to real scars")
                for mine, theirs in asked.items() if real[theirs]]

    def _looks(self, here: dict, generator, values: dict, patients: list[str]) -> list[dict]:
        """Rows of how the drafts look; adds the scores in place to `values`, for later arms."""
        mine = values["features"]
        rows = self._distances(here, mine, self.real_features, patients, self.real_of)
        val = self._validation()
        rows += self._distances(here, mine, self.real_features[val], patients,
                                self.real_of[val], "_to_validation")
        for arm, theirs in self.compared.items():
            if len(mine) >= LEAST_CROPS <= len(self.real_features):
                rows.append(number_row(
                    here, f"feature_distance_diff_vs_{arm}", *realism.distance_gain(
                        mine, theirs["features"], self.real_features, patients, self.real_of),
                    n=len(mine), unit="KID x 1000"))
        again, _ = d.draft(d.own_texture(generator), d.in_place(
            self.patients, self.roles, generator, IN_PLACE_SEEDS))
        of = [s.heart.case.identifier for s in again]
        for metric, found in zip(("ssim_crop", "rmse_crop"), realism.in_place_scores(again)):
            rows.append(_row(here, metric, found, of, np.mean, "mean"))
            rows += [_row(here, f"{metric}_diff_vs_{arm}", found - theirs[metric], of, np.mean,
                          "difference") for arm, theirs in self.compared.items()]
            values[metric] = found
        healthy, _ = d.draft(generator, d.requests_of(self.requests, self.patients, generator,
                                                      healthy=True))
        judged, _ = d.judge_drafts(healthy, self.judges["own"], self.roles, self.qc)
        rows.append(_row(here, "qc_pass_healthy", np.array([r["accepted"] for r in judged], float),
                         patients, np.mean, "fraction"))
        for metric, ring in (("shortcut_auc", False), ("seam_auc", True)):
            value, low, high, n = realism.classifier_auc(healthy, ring)
            rows.append(number_row(here, metric, value, low, high, n=n, unit="AUC"))
        return rows

    def _distances(self, here: dict, mine: np.ndarray, real: np.ndarray, mine_of, real_of,
                   to: str = "") -> list[dict]:
        if min(len(mine), len(real)) < LEAST_CROPS:
            return []
        # the Frechet distance is biased by the number of samples, so halves give it no interval
        return [number_row(here, f"feature_distance{to}",
                           *realism.distance_interval(mine, real, mine_of, real_of), n=len(mine),
                           unit="KID x 1000"),
                number_row(here, f"frechet_distance{to}", realism.frechet_distance(mine, real),
                           n=len(mine), unit="distance")]


def _row(here: dict, metric: str, values: np.ndarray, patients: Sequence[str],
         statistic: Callable, unit: str) -> dict:
    """A statistic of values, each of a patient, with its interval over patients."""
    members = [np.flatnonzero(np.asarray(patients) == name) for name in np.unique(patients)]

    def of_patients(drawn: np.ndarray) -> np.ndarray:
        drawn_sets = drawn.reshape(-1, drawn.shape[-1])
        found = [statistic(values[np.concatenate([members[k] for k in one])]) for one in drawn_sets]
        return np.reshape(found, drawn.shape[:-1])

    bounds = interval(len(members), of_patients, RESAMPLES)
    return number_row(here, metric, statistic(values), *bounds, n=len(values), unit=unit)


if __name__ == "__main__":
    sys.exit(exit_code("generator", main))

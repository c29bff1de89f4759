"""Laws of the audit: copies, frozen seeds and deaf generators fail, honest ones pass."""

import json
import re
from dataclasses import asdict, replace
from itertools import islice

import numpy as np
import pytest
import torch
from scipy import ndimage
from tiny_fold import write_tiny_fold
from tiny_inpaint import tiny_config, tiny_slices
from tiny_training import enter_nnunet, write_tiny_training

from benchmarks.audit import numbers
from nnunet_lgesynth.benchmark.audit import audit, diversity, texture
from nnunet_lgesynth.benchmark.nearest import Patch
from nnunet_lgesynth.benchmark.probes import Probe, asks, paint_scars, real_scars
from nnunet_lgesynth.cli import main
from nnunet_lgesynth.config import AuditConfig, UserError, config_hash
from nnunet_lgesynth.files import write_json
from nnunet_lgesynth.generators.fitted import generator_folder
from nnunet_lgesynth.generators.inpaint.networks import build
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.generators.subject import read_subjects
from nnunet_lgesynth.pool.synthesize import prepare

CONFIG = AuditConfig(requests=3, seeds=4)
SIZE = 48
DISK = np.hypot(*(np.indices((SIZE, SIZE)) - (SIZE - 1) / 2)) < 7


def probe(by_seed, by_contrast, by_place) -> Probe:
    mask, other = DISK.astype(np.uint8), np.roll(DISK, 9, 1).astype(np.uint8)
    return Probe("a", 0, mask, other, (0.5, 1.0), *map(np.asarray, (by_seed, by_contrast,
                                                                   by_place)))


def test_diversity_is_measured_in_units_that_mean_something():
    rng = np.random.default_rng(0)
    texts = rng.normal(0, 0.2, (40, SIZE, SIZE))
    rough = [Patch("a", 0, t + np.linspace(0, 3, SIZE), DISK) for t in texts]
    assert texture(rough) == pytest.approx(0.2, rel=0.2)        # a slope is no texture
    place = np.stack([DISK, np.roll(DISK, 9, 1)]).astype(float)
    found = diversity([probe(texts, [texts[0], texts[0] + 0.4], place)], 0.2, CONFIG)
    assert found.spread == pytest.approx(1, rel=0.05) and found.slope == pytest.approx(0.8)
    assert found.inside == 1 and found.passed
    everywhere = np.stack([np.zeros((SIZE, SIZE)), np.ones((SIZE, SIZE))])
    dull = diversity([probe(texts[:1].repeat(3, 0), texts[:1].repeat(2, 0), everywhere)], 0.2,
                     CONFIG)
    assert (dull.spread, dull.slope) == (0, 0) and dull.inside < 0.2
    assert dull.failed == ("spread", "slope", "inside")
    still = diversity([probe(texts, texts[:2], place[:1].repeat(2, 0))], 0.2, CONFIG)
    assert still.inside == 0


class Frozen(Painter):
    """Every seed gives the same."""

    def drafts(self, conditions, seeds):
        return super().drafts(conditions, [0] * len(seeds))


class Deaf(Painter):
    """The same scar, whatever is asked for; seeds differ."""

    def drafts(self, conditions, seeds):
        asked = [replace(c, request=np.roll(np.pad(DISK, 8), 9, 0).astype(np.uint8),
                         contrast=0.8) for c in conditions]
        return super().drafts(asked, seeds)


class Copier(Painter):
    """Pastes training scars, centred on the request."""

    def __init__(self, scars):
        self.scars = scars

    def drafts(self, conditions, seeds):
        return [self._copy(c, self.scars[s % len(self.scars)]) for c, s in zip(conditions, seeds)]

    @staticmethod
    def _copy(condition, scar):
        where = [np.argwhere(m).mean(axis=0) for m in (condition.request, scar.mask)]
        return np.roll(scar.image, np.round(where[0] - where[1]).astype(int), (0, 1))


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    return write_tiny_fold(tmp_path_factory.mktemp("fold"), cases=18)


@pytest.fixture(scope="module")
def scars(fold):
    return real_scars(fold, read_subjects(fold, fold.train), Painter())


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)


def test_real_scars_lie_on_the_generators_grid_with_their_masks(fold, scars):
    assert [(s.case, s.z) for s in scars] == [(f"case_{k:02d}", z) for k in range(0, 16, 2)
                                              for z in (1, 2)]
    for scar in scars:
        assert scar.image.shape == scar.mask.shape == (64, 64)
        assert scar.mask.sum() == (fold.read(scar.case).labels[0, scar.z] >= 3).sum()
        assert np.median(scar.image[scar.mask]) > 0.5 > np.abs(np.median(
            scar.image[~ndimage.binary_dilation(scar.mask, iterations=25)]))


def test_painted_scars_differ_from_their_source_in_the_scar_alone(fold):
    prior, hearts = prepare(fold, "fitted")
    asked = list(islice(asks(fold, prior, hearts, Painter(), np.random.default_rng(0)), 4))
    for ask, scar in zip(asked, paint_scars(asked, Painter())):
        source = ask.condition.source
        assert (scar.case, scar.z) == (ask.heart.case.identifier, ask.z)
        assert np.array_equal(scar.mask, ask.condition.request > 0) and scar.mask.sum() >= 6
        change = np.abs(scar.image - source)
        assert change[scar.mask].mean() > 0.2 and change[~ask.condition.region].max() < 1e-5


def test_the_painter_passes_and_is_told_in_full(fold):
    found = audit(fold, Painter(), 24, 0, CONFIG)
    assert found.passed and found.memorisation.expected >= 1 / 8
    assert found.diversity.slope == pytest.approx(1, abs=0.15)
    excess = [m.ratio - m.bound for m in found.memorisation.samples]
    shown = [p.match.ratio - p.match.bound for p in found.pairs]
    assert shown == sorted(excess)[:6] and len(excess) == 24
    again = audit(fold, Painter(), 4, 0, CONFIG)
    assert again.memorisation.samples == found.memorisation.samples[:4]
    assert json.loads(json.dumps(found.as_dict()))["memorisation"]["n"] == 24
    here = dict.fromkeys(("benchmark", "arm", "dataset", "split", "device", "seeds", "preset",
                          "command", "versions", "date"))
    told = {r["metric"]: r["value"] for r in numbers(found, here)}
    assert told["near"] * 24 == found.memorisation.flagged and told["audit_passed"] == 1
    assert told["slope"] == pytest.approx(found.diversity.slope, abs=1e-5)
    assert told["near_allowed"] * 24 == pytest.approx(found.memorisation.allowed, abs=1e-4)


@pytest.mark.parametrize("make, failed", [(lambda _: Frozen(), {"spread"}),
                                          (lambda _: Deaf(), {"slope", "inside"})])
def test_a_collapsed_generator_fails(fold, make, failed):
    found = audit(fold, make(None), 4, 0, CONFIG)
    assert not found.passed and failed <= set(found.diversity.failed)


def test_a_copier_fails_by_memorisation(fold, scars):
    found = audit(fold, Copier(scars), 24, 0, CONFIG)
    assert not found.passed and not found.memorisation.passed
    assert found.memorisation.flagged > 20      # of 24
    own = {(s.case, s.z + 1) for s in scars}
    assert {(m.nearest_case, m.nearest_slice) for m in found.memorisation.samples} <= own


def test_too_few_patients_are_refused_before_anything_is_painted(tmp_path):
    fold = write_tiny_fold(tmp_path)
    with pytest.raises(UserError, match="2 training patients have a scar, and 4 are needed"):
        audit(fold, Painter(), 4, 0, CONFIG)


def test_a_crop_that_holds_no_scar_is_refused(fold):
    small = Painter()
    small.pixels = 3
    prior, hearts = prepare(fold, "fitted")
    with pytest.raises(UserError, match="larger than the 4 mm that the generator 'paint' paints"):
        next(asks(fold, prior, hearts, small, np.random.default_rng(0)))


def test_a_broken_generator_is_told(fold):
    class Broken(Painter):
        def drafts(self, conditions, seeds):
            return [np.full_like(c.source, np.nan) for c in conditions]

    with pytest.raises(UserError, match="'paint' paints values that are not finite; fit it again"):
        audit(fold, Broken(), 4, 0, CONFIG)


@pytest.mark.parametrize("values", [{"seeds": 1}, {"requests": 0}, {"alarm": 0}])
def test_senseless_bounds_are_refused(values):
    with pytest.raises(UserError, match=r"must (be|lie)"):
        AuditConfig(**values)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    enter_nnunet(monkeypatch, tmp_path)
    monkeypatch.setattr("nnunet_lgesynth.benchmark.audit.AuditConfig", lambda: CONFIG)
    return write_tiny_training(tmp_path, cases=14)


def ask(folder, *more) -> int:
    return main(["audit", "-d", "116", "-f", "0", "-device", "cpu", "-n", "6", "-o", str(folder),
                 *more])


def test_the_command_writes_numbers_and_one_page(trained, tmp_path, capsys):
    out = tmp_path / "audit"
    assert ask(out, "--generator", "paint") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Memorisation passed: ") and said[1].startswith("Diversity passed: ")
    assert said[-1] == f"Report: {out / 'audit.html'}"
    told = json.loads((out / "audit.json").read_text())
    assert told["passed"] and told["sentences"] == said[:2]
    row = told["memorisation"]["samples"][0]
    assert row["ratio"] == pytest.approx(row["distance"] / row["reference"])
    assert row["nearest_case"] in trained.train and row["flagged"] == (row["ratio"] < row["bound"])
    page = (out / "audit.html").read_text()
    assert "patient data" in page and "<svg" in page and row["case"] in page
    assert page.index("Passed: ") < page.index("How near")
    assert all(link.startswith("data:image/png;base64,")
               for link in re.findall(r'(?:src|href)="([^"#]+)"', page))
    assert {p.name for p in out.iterdir()} == {"audit.json", "audit.html"}
    few = len(trained.train) - 1
    assert ask(out, "--generator", "paint", "--json", "--patients", str(few)) == 0
    assert json.loads(capsys.readouterr().out)["memorisation"]["samples"][0] != row
    assert f"--patients {few} " in (out / "audit.html").read_text()


def test_a_fitted_inpainter_is_audited_without_its_judge_and_may_fail(trained, tmp_path, capsys):
    config = tiny_config()
    folder = generator_folder(tmp_path / "nnUNet_results", trained.dataset, "tiny", "nnUNetPlans",
                              "2d", 0)
    torch.manual_seed(0)
    build(config).save(folder)
    write_json(folder / "prior.json", tiny_slices(trained, config).prior.as_dict())
    write_json(folder / "config.json", {"config": asdict(config), "hash": config_hash(config),
                                        "train": trained.train, "reward": None})
    assert ask(tmp_path / "audit") == 1                  # never trained: it paints noise
    said = capsys.readouterr().out
    assert "Diversity failed: " in said and "Report: " in said
    assert "Failed: " in (tmp_path / "audit" / "audit.html").read_text()


@pytest.mark.parametrize("more, message", [
    (("-n", "0"), "-n must be at least 1"), (("--seed", "-1"), "--seed at least 0"),
    (("--generator", "gan"), "no generator 'gan'"), (("-f", "7"), "Fold 7 is not in"),
    (("--patients", "1"), "must lie in 2.."),
    ((), "No generator is fitted")])
def test_mistakes_are_told_in_one_line(trained, tmp_path, capsys, more, message):
    asked = more if "--generator" in more or not more else ("--generator", "paint", *more)
    assert ask(tmp_path / "audit", *asked) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_file_in_the_way_is_told(trained, tmp_path, capsys):
    (tmp_path / "audit").write_text("")
    assert ask(tmp_path / "audit", "--generator", "paint") == 2
    assert "a file is in the way" in capsys.readouterr().err

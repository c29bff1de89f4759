"""The gallery shows every painted slice of a pool with the verdict that its manifest tells."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_training import enter_nnunet, write_tiny_training

from nnunet_lgesynth.benchmark.preview import tiles
from nnunet_lgesynth.cli import main
from nnunet_lgesynth.config import InjectionConfig, QCConfig
from nnunet_lgesynth.generators.paint import Painter
from nnunet_lgesynth.pool.store import read_manifest
from nnunet_lgesynth.pool.studio import Studio

TRAINING = "nnUNetTrainerLGEPaint__nnUNetPlans__2d"


class Patchy(Painter):
    """Forgets the contrast in every third slice, which is then refused."""

    count = 0

    def _contrast_map(self, condition):
        self.count += 1
        return super()._contrast_map(condition) * (self.count % 3 > 0)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        enter_nnunet(patch, folder)
        fold = write_tiny_training(folder)
        path = folder / "nnUNet_results" / fold.dataset / TRAINING / "fold_0" / "lgesynth_pool"
        qc = QCConfig(min_slice_share=0.3, drafts_per_slice=1)
        studio = Studio(fold, Patchy(), None, InjectionConfig(pool_cases=4), path,
                        lambda _: None, qc)
        while studio.wanted:
            studio.draft()
        yield path


def test_every_painted_slice_is_a_tile_with_its_verdict(pool):
    records = {r["identifier"]: r for r in read_manifest(pool)}
    found = list(tiles(pool, 100))
    told = {(name, int(z)): v for name, r in records.items() for z, v in r["verdicts"].items()}
    assert {(t.case, t.slice) for t in found} == set(told) and len(found) == len(told)
    assert {t.accepted for t in found} == {True, False}
    for tile in found:
        record, verdict = records[tile.case], told[tile.case, tile.slice]
        failed = {n for n, c in verdict["checks"].items() if not c["passed"]}
        assert tile.accepted == verdict["accepted"] and set(tile.failed) == failed
        assert (tile.source, tile.kind) == (record["source"], record["kind"])
        source, sample, outlined = np.split(tile.picture, 3, axis=1)
        assert np.array_equal(source, sample) != tile.accepted
        assert np.array_equal(sample, outlined) == (not tile.segments)
        assert bool(tile.segments) == (tile.accepted and tile.kind == "scar") or \
            tile.source in ("case_00", "case_02")               # which have scars of their own


def test_a_page_can_be_filtered_and_a_picture_holds_all(pool, tmp_path, capsys):
    page, picture = tmp_path / "new" / "x.html", tmp_path / "x.png"
    assert main(["preview", str(pool), "-o", str(page)]) == 0
    found = list(tiles(pool, 100))
    assert f"Wrote {len(found)} slices" in capsys.readouterr().out
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "") and text.count("<figure") == len(found)
    assert re.findall(r'data-segments="([\d ]*)"', text) == [
        " ".join(map(str, t.segments)) for t in found]
    verdicts = re.findall(r'data-verdict="([\w ]+)"', text)
    assert [v.split()[0] == "accepted" for v in verdicts] == [t.accepted for t in found]
    for option in ("scar", "healthy", "refused", "contrast_share"):
        assert f"<option>{option}</option>" in text
    assert main(["preview", str(pool), "-o", str(picture), "-n", "2"]) == 0
    high, wide = found[-1].picture.shape[:2]
    shown = [t for t in found if t.case in {r["identifier"] for r in read_manifest(pool)[-2:]}]
    assert Image.open(picture).size[0] >= min(6, len(shown)) * wide
    assert not list(tmp_path.glob("*.part*")) and high


@pytest.mark.parametrize("told, said", [
    (["-o", "x.pdf"], "must end in .html or .png"), (["-o", "x.png", "-n", "0"], "at least 1")])
def test_what_cannot_be_shown_is_said(pool, tmp_path, monkeypatch, capsys, told, said):
    monkeypatch.chdir(tmp_path)
    assert main(["preview", str(pool), *told]) == 2 and said in capsys.readouterr().err
    assert main(["preview", str(tmp_path), "-o", "x.png"]) == 2
    assert "give the folder lgesynth_pool" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())


def test_an_empty_pool_is_said(pool, tmp_path, capsys):
    empty = pool.parent.parent / "fold_0" / "other"
    empty.mkdir()
    assert main(["preview", str(empty), "-o", str(tmp_path / "x.png")]) == 2
    assert "holds no case" in capsys.readouterr().err

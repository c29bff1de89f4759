"""Laws of arms' names: what they say, what they are compared with, and how they are refused."""

import pytest

from nnunet_lgesynth.benchmark.variants import (
    Variant,
    canonical,
    file_name,
    further_references,
    is_tested,
    reference_of,
)
from nnunet_lgesynth.config import UserError


def test_a_name_says_trainer_probability_and_patients():
    synth = "nnUNetTrainerLGESynth"
    assert Variant.of("real") == Variant("nnUNetTrainerLGEReal")
    assert Variant.of("nnUNetTrainerX") == Variant("nnUNetTrainerX")
    assert Variant.of("lgesynth:n=20,p=0.25") == Variant(synth, 0.25, patients=20)
    assert Variant.of("synthetic-only") == Variant(synth, 1.0)
    assert Variant.of("lgesynth:n=20,p=0.25").suffix == "_p0.25_n20"
    assert Variant.of("real").suffix == "" and Variant.of("real").environment == {}
    assert Variant.of("lgesynth:n=20,p=0.25").environment == {
        "LGESYNTH_PROBABILITY": "0.25", "LGESYNTH_PATIENTS": "20"}
    assert Variant.of("lgesynth:c=0.7") == Variant(synth, no_reflow_share=0.7)
    assert Variant.of("lgesynth:c=0.7").environment == {"LGESYNTH_NO_REFLOW_SHARE": "0.7"}
    assert Variant.of("lgesynth:f=0.5,p=1").environment == {
        "LGESYNTH_PROBABILITY": "1.0", "LGESYNTH_FADE": "0.5"}
    assert canonical("lgesynth:n=020,p=.5") == "lgesynth:p=0.5,n=20"
    assert canonical("nnUNetTrainerLGEReal") == "real" == canonical("real")
    assert Variant.of("lgesynth:g=roi-cpu-plain").suffix == "_groi-cpu-plain"
    assert Variant.of("lgesynth:g=roi-cpu-plain").environment == {}
    assert canonical("synthetic-only") == "synthetic-only"
    assert file_name("lgesynth:n=20,p=0.25") == "lgesynth_n=20_p=0.25"


@pytest.mark.parametrize("arm, message", [
    ("reel", "Unknown arm 'reel'"), ("lgesynth:q=1", "'q=1' is neither"),
    ("lgesynth:p=much", "'p=much' is neither"), ("lgesynth:", "'' is neither"),
    ("lgesynth:p=1.5", "p must lie above 0 and at most at 1"), ("real:n=2.5", "'n=2.5' is neither"),
    ("lgesynth:p=0", "without injection it is real"), ("real:p=0.5", "in an arm that injects"),
    ("real:c=0.5", "in an arm that injects"), ("paint:c=2", r"c must lie in \[0, 1\]"),
    ("paint:f=0", "f above 0"), ("real:f=1", "in an arm that injects"),
    ("paint:g=roi-cpu", "that an arm draws"), ("lgesynth:g=best", "one of demo, gpu-2d"),
    ("real:n=1", "At least 2|at least 2"), ("lgesynth:p=0.1,p=0.9", "each once")])
def test_what_says_nothing_is_refused(arm, message):
    with pytest.raises(UserError, match=message):
        Variant.of(arm)


@pytest.mark.parametrize("arm, reference, tested", [
    ("real", "real", False), ("real+filter", "real", False), ("real:n=20", "real", False),
    ("real:n=20+filter", "real+filter", False), ("paint", "real", True),
    ("paint+filter", "real+filter", True), ("lgesynth:p=0.25", "real", True),
    ("lgesynth:n=20", "real:n=20", True), ("lgesynth:n=20+filter", "real:n=20+filter", True),
    ("synthetic-only", "real", True), ("nnUNetTrainerX", "real", True)])
def test_an_arm_is_compared_with_real_on_as_many_patients(arm, reference, tested):
    assert reference_of(arm) == reference and is_tested(arm) == tested


@pytest.mark.parametrize("arm, references", [
    ("lgesynth", ["paint"]), ("lgesynth+filter", ["paint+filter"]), ("paint", []), ("real", []),
    ("lgesynth:n=20", ["paint:n=20", "real:n=40"]), ("lgesynth:n=40", ["real"]),
    ("lgesynth:p=0.25,n=20+filter", ["real+filter"]), ("paint:n=20", ["real:n=40"]),
    ("real:n=20", [])])
def test_an_arm_is_also_compared_with_the_painter_and_with_more_patients(arm, references):
    arms = ["real", "real+filter", "real:n=40", "real:n=20", "paint", "paint+filter", "paint:n=20",
            "lgesynth", "lgesynth:n=20"]
    assert further_references(arm, arms) == references


def test_an_ablation_is_compared_with_the_arm_that_is_none():
    arms = ["real", "lgesynth", "lgesynth+filter", "paint", "lgesynth:p=1.0", "paint:p=1.0"]
    assert further_references("lgesynth:g=roi-cpu-plain", arms) == ["lgesynth", "paint"]
    assert further_references("lgesynth:g=roi-cpu-plain+filter", arms) == ["lgesynth+filter"]
    assert further_references("lgesynth:p=1,g=roi-cpu-plain", arms) == [
        "lgesynth:p=1.0", "paint:p=1.0"]
    assert further_references("lgesynth:p=1,g=roi-cpu-plain", ["synthetic-only"]) == [
        "synthetic-only"]


def test_the_inpainter_is_compared_with_the_painter_that_was_told_the_same():
    told = "p=1.0,f=1.0,c=1.0"
    arms = ["real", "paint", f"paint:{told}", f"paint:{told}+filter", f"lgesynth:{told}"]
    assert further_references(f"lgesynth:{told}", arms) == [f"paint:{told}"]
    assert further_references(f"lgesynth:{told}+filter", arms) == [f"paint:{told}+filter"]
    assert further_references("lgesynth:p=0.25", arms) == ["paint"]
    assert further_references(f"paint:{told}", arms) == []

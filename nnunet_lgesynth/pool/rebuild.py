"""A pool's case made anew from its manifest line.

The line's source, request and seed tell all that was drawn; generator, judge and quality control
must be those of the line. On the same machine, versions and number of threads the case is the
stored one bit by bit: the slices of a lesion are drafted in the same batches.
"""

from __future__ import annotations

import json

from nnunet_lgesynth.anatomy.scar import ScarSpec, paint_mask
from nnunet_lgesynth.config import QCConfig, UserError, config_hash
from nnunet_lgesynth.dataset.case import Fold
from nnunet_lgesynth.generators.subject import read_subjects
from nnunet_lgesynth.pool.synthesize import Sample, judge_hash, paint_case

__all__ = ["rebuild"]

OUTCOME = ("slices", "captions", "changed", "verdicts")


def rebuild(fold: Fold, generator, judge, config: QCConfig, line: dict) -> Sample:
    """The sample that a manifest line was written for.

    Raises `UserError` where the line is of another generator, judge, quality control or fold, or
    where the outcome is another one for all that.
    """
    name = line["identifier"]
    for what, told, given in (("generator", line["generator"], generator.hash),
                              ("judge", line.get("judge"), judge_hash(judge)),
                              ("quality control", line.get("qc"), config_hash(config))):
        if told != given:
            raise UserError(f"{name} was made with the {what} {told}, not {given}; give the one "
                            "that its pool was filled with.")
    heart, = read_subjects(fold, [line["source"]])
    spec = ScarSpec.from_dict(line["spec"])
    sample = paint_case(fold, generator, heart, spec, paint_mask(heart.anatomy, spec), judge,
                        config, line["seed"], healthy=line["kind"] == "healthy")
    found = json.loads(json.dumps(sample.record(generator.hash)))
    differing = [key for key in OUTCOME if found[key] != line[key]]
    if differing:
        raise UserError(f"{name} comes out with other {', '.join(differing)} than its manifest "
                        "line tells: the source case, the machine or the versions are not those "
                        "that it was made with.")
    return sample

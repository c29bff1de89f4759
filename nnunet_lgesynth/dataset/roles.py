"""Which label value plays which part, which channel is LGE, and how slices are oriented.

nnU-Net datasets name their labels freely. `Roles` fixes what the plugin needs to know, by integer
value as stored in the segmentation files (also where nnU-Net trains on regions); `Frame` says how
a stored slice lies in the body. Both, and marked landmarks, live in `lgesynth.json` beside
`dataset.json`.

Array axes are nnU-Net's (slice, row, column) of the raw file as its reader gives them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.files import write_json

__all__ = ["DatasetInfo", "Frame", "Roles", "guess_roles", "read_info", "set_roles", "write_info"]

FILE_NAME = "lgesynth.json"


@dataclass(frozen=True)
class Roles:
    """Label values of the parts of the heart, and the LGE channel's index."""

    cavity: int
    myocardium: int
    scar: int
    no_reflow: int | None = None
    rv: int | None = None
    other_wall: tuple[int, ...] = ()   # further labels inside the LV wall, e.g. oedema
    lge_channel: int = 0

    def __post_init__(self):
        object.__setattr__(self, "other_wall", tuple(self.other_wall))
        values = [self.cavity, self.myocardium, self.scar, *self.other_wall]
        values += [v for v in (self.no_reflow, self.rv) if v is not None]
        if not all(isinstance(v, int) and v > 0 for v in values) or \
                len(set(values)) != len(values):
            raise UserError(f"Each role needs a label value of its own, a whole number above 0 "
                            f"(background), got {dataclasses.asdict(self)}.")

    @property
    def scars(self) -> tuple[int, ...]:
        """Labels that count as scar: infarct, and no-reflow where the dataset has it."""
        return (self.scar,) if self.no_reflow is None else (self.scar, self.no_reflow)

    @property
    def wall(self) -> tuple[int, ...]:
        """Labels that make up the LV wall, scarred or not."""
        return (self.myocardium, *self.scars, *self.other_wall)


@dataclass(frozen=True)
class Frame:
    """How a stored stack lies in the body; None where unknown.

    `anterior` and `septal` are unit (row, column) directions from the LV centre towards the
    anterior wall and towards the RV; `slices` names the order along the slice axis.
    """

    slices: str | None = None
    anterior: tuple[float, float] | None = None
    septal: tuple[float, float] | None = None

    def __post_init__(self):
        for name in ("anterior", "septal"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
            if value is not None and (len(value) != 2 or abs(math.hypot(*value) - 1) > 1e-3):
                raise UserError(f"{name} must be a (row, column) direction of length 1, not "
                                f"{value}.")
        if self.slices not in (None, "apex_to_base", "base_to_apex"):
            raise UserError("slices must be 'apex_to_base', 'base_to_apex' or null, not "
                            f"{self.slices!r}.")


@dataclass(frozen=True)
class DatasetInfo:
    """All that `lgesynth.json` holds.

    `landmarks` are marked anterior RV insertions: case -> (slice, row, column) voxel of the raw
    file, any slice that shows the LV. `same_as` maps a case to an earlier one of the same patient,
    who counts once in statistics.
    """

    roles: Roles
    frame: Frame = field(default_factory=Frame)
    landmarks: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    same_as: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.landmarks, dict):
            raise UserError(f"landmarks must map cases to voxels, not be {self.landmarks!r}.")
        for case, voxel in self.landmarks.items():
            if not isinstance(voxel, (list, tuple)) or len(voxel) != 3 or not all(
                    isinstance(v, (int, float)) and v is not True and v is not False
                    and math.isfinite(v) for v in voxel):
                raise UserError(f"The landmark of {case} must be (slice, row, column), not "
                                f"{voxel}.")
        object.__setattr__(self, "landmarks", {c: tuple(v) for c, v in self.landmarks.items()})
        if not isinstance(self.same_as, dict) or not all(
                isinstance(c, str) and c not in self.same_as for c in self.same_as.values()):
            raise UserError("same_as must map cases to an earlier case of their patient, which it "
                            f"does not map itself, not be {self.same_as!r}.")

    def patient(self, case: str) -> str:
        """The case that stands for a case's patient."""
        return self.same_as.get(case, case)


def write_info(folder: str | Path, info: DatasetInfo) -> Path:
    """Write `lgesynth.json` into a raw dataset folder; returns its path."""
    path = Path(folder) / FILE_NAME
    write_json(path, {"format": 1, **dataclasses.asdict(info)})
    return path


def read_info(folder: str | Path) -> DatasetInfo:
    """Read `lgesynth.json` of a raw dataset folder."""
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise UserError(f"{path} is missing, so the meaning of the labels is unknown; write it "
                        "with: lgesynth roles -d DATASET_ID")
    try:
        values = json.loads(path.read_text())
        return DatasetInfo(Roles(**values["roles"]), Frame(**values["frame"]),
                           values.get("landmarks", {}), values.get("same_as", {}))
    except (KeyError, TypeError, ValueError) as error:       # also what Roles and Frame refuse
        raise UserError(f"{path} is not readable ({error}); write it anew with: "
                        "lgesynth roles -d DATASET_ID") from error


# Names seen in public datasets (EMIDEC, ACDC, MyoPS, M&Ms, LASCAR, MS-CMR), tried in this order.
_LV = r"(lv|left.?ventric(le|ular))"
SYNONYMS: dict[str, tuple[str, ...]] = {
    "no_reflow": (r"no.?re.?flow", r"mvo", r"microvascular.*obstruction", r"pmo"),
    "scar": (r"scars?", r"infarct(s|ion|ed)?", r"mi", r"fibrosis", r"lge", r"enhanc\w*",
             r"lesions?"),
    "rv": (r"rv.*", r"right.?ventric\w*.*"),
    "cavity": (_LV, rf"((whole|entire|full) )?({_LV}|heart)", r"lvc|lvbp",
               rf"({_LV}.?)?(blood.?pool|cavity|blood|bp|endo(card\w*)?)"),
    "myocardium": (rf"({_LV}.?)?(normal|healthy|remote)?.?myo(cardium)?.?(normal|healthy|lv)?",
                   rf"({_LV}.?)?(wall|epi(card\w*)?)", r"lvm|mlv"),
    "other_wall": (r"o?edema", r"border.?zone", r"gr[ae]y.?zone"),
}
IN_WALL = ("no_reflow", "scar", "myocardium", "other_wall")
IN_WORDS = ("no_reflow", "scar", "other_wall")   # e.g. "myocardial infarction", "LV scar"


def _value_names(labels: dict) -> dict[int, str]:
    """Name of each stored value; with regions, the smallest region that contains the value."""
    best: dict[int, tuple[int, str]] = {}
    for name, value in labels.items():
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        for v in values:
            if name != "background" and name != "ignore" and v != 0 and (
                    v not in best or len(values) < best[v][0]):
                best[v] = (len(values), name)
    return {v: name for v, (_, name) in sorted(best.items())}


def guess_roles(dataset_json: dict, told: dict[str, str | int] | None = None,
                channel: str | int | None = None) -> Roles:
    """Roles from the label names of a `dataset.json`.

    Parameters
    ----------
    dataset_json : nnU-Net's `dataset.json`; region labels (lists of values) are understood.
    told : role -> label name or value, for what the names do not tell, e.g. {"scar": "BZ"}.
    channel : name or index of the LGE channel; default: the one named like LGE, or the only one.
    """
    names = _value_names(dataset_json["labels"])
    roles: dict = {role: _told_value(role, given, names) for role, given in (told or {}).items()}
    other_wall = [roles.pop("other_wall")] if "other_wall" in roles else []
    for value, name in names.items():
        role = _role_of(name)
        if role is None or value in (*roles.values(), *other_wall):
            continue
        if role == "other_wall" or role in (told or {}):
            other_wall += [value] if role in IN_WALL else []
        elif role in roles:
            raise UserError(
                f"Labels {roles[role]} and {value} of {names} both look like {role}; say which "
                f"it is, for example: lgesynth roles -d DATASET_ID --{role} {value}")
        else:
            roles[role] = value
    missing = [r for r in ("cavity", "myocardium", "scar") if r not in roles]
    if missing:
        raise UserError(
            f"No label is recognised as {', '.join(missing)} among {names}; name it, for "
            f"example: lgesynth roles -d DATASET_ID --{missing[0]} LABEL_NAME")
    return Roles(lge_channel=_lge_channel(dataset_json["channel_names"], channel),
                 other_wall=tuple(other_wall), **roles)


def _told_value(role: str, given: str | int, names: dict[int, str]) -> int:
    for value, name in names.items():
        if str(given) in (str(value), name):
            return value
    raise UserError(f"--{role} {given}: no such label; the dataset has {names}.")


def _role_of(name: str) -> str | None:
    text = name.strip().lower().replace("_", " ").replace("-", " ")
    for role, patterns in SYNONYMS.items():
        if any(re.fullmatch(p, text) for p in patterns):
            return role
    for role in IN_WORDS:
        if any(re.fullmatch(p, w) for p in SYNONYMS[role] for w in text.split()):
            return role
    return None


def _lge_channel(channel_names: dict, given: str | int | None) -> int:
    for index, name in channel_names.items():
        if given is not None and str(given).lower() in (str(index), str(name).lower()):
            return int(index)
    if given is not None:
        raise UserError(f"--channel {given}: no such channel; the dataset has {channel_names}.")
    hits = [int(i) for i, n in channel_names.items()
            if re.search(r"\b(lge|de|psir|dcmr|delayed|late)\b", str(n).lower().replace("_", " "))]
    if len(hits) == 1:
        return hits[0]
    if len(channel_names) == 1:
        return int(next(iter(channel_names)))
    raise UserError(f"Which channel is LGE is not clear from {channel_names}; name it with: "
                    "lgesynth roles -d DATASET_ID --channel NAME_OR_INDEX")


def set_roles(dataset: str, told: dict[str, str | int] | None = None,
              channel: str | int | None = None) -> tuple[Path, Roles]:
    """Write `lgesynth.json` into an existing raw dataset; known orientation and landmarks are
    kept.

    Returns the file and the roles. `told` and `channel` as in `guess_roles`.
    """
    raw = os.environ.get("nnUNet_raw", "")
    pattern = f"Dataset{int(dataset):03d}_*" if str(dataset).isdigit() else str(dataset)
    found = [p for p in Path(raw).glob(pattern) if (p / "dataset.json").is_file()] if raw else []
    if len(found) != 1:
        raise UserError(f"{len(found)} datasets match {dataset} in nnUNet_raw={raw or '(not set)'}"
                        ", exactly one with a dataset.json is needed.")
    roles = guess_roles(_read_dataset_json(found[0] / "dataset.json"), told, channel)
    try:
        info = dataclasses.replace(read_info(found[0]), roles=roles)
    except UserError:          # there is none yet, or a damaged one that is written anew
        info = DatasetInfo(roles)
    return write_info(found[0], info), roles


def _read_dataset_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text())
        missing = {"labels", "channel_names"} - set(values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is not readable ({error}); mend it by nnU-Net's documentation of "
                        "dataset.json.") from error
    if missing:
        raise UserError(f"{path} lacks {sorted(missing)}; add them, see nnU-Net's documentation of "
                        "dataset.json.")
    for key in ("labels", "channel_names"):
        if not isinstance(values[key], dict):
            raise UserError(f"{path}: {key} must map names (as in nnU-Net's documentation of "
                            f"dataset.json), not be {values[key]!r}; correct it.")
    return values

"""Which label value plays which part, which channel is LGE, and how slices are oriented.

nnU-Net datasets name their labels freely. `Roles` fixes what the plugin needs to know, by integer
value as stored in the segmentation files (also where nnU-Net trains on regions); `Frame` says how
a stored slice lies in the body. Both live in `lgesynth.json` beside `dataset.json`.

Array axes are nnU-Net's (slice, row, column) of the raw file as its reader gives them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_lgesynth.config import UserError, write_json

__all__ = ["DatasetInfo", "Frame", "Roles", "guess_roles", "read_info", "write_info"]

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
        if len(set(values)) != len(values) or 0 in values:
            raise UserError(f"Each role needs a label value of its own and none may be 0 "
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
        if self.slices not in (None, "apex_to_base", "base_to_apex"):
            raise UserError("slices must be 'apex_to_base', 'base_to_apex' or null, not "
                            f"{self.slices!r}.")


@dataclass(frozen=True)
class DatasetInfo:
    """All that `lgesynth.json` holds."""

    roles: Roles
    frame: Frame = field(default_factory=Frame)


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
        return DatasetInfo(Roles(**values["roles"]), Frame(**values["frame"]))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not readable ({error}); write it anew with: "
                        "lgesynth roles -d DATASET_ID") from error


# Names seen in public datasets (EMIDEC, ACDC, MyoPS, M&Ms, LASCAR, MS-CMR), tried in this order.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "no_reflow": (r"no.?re.?flow", r"mvo", r"microvascular.*obstruction", r"pmo"),
    "scar": (r"scar", r"infarct(ion)?", r"mi", r"fibrosis", r"lge", r"enhanc\w*", r"lesion"),
    "rv": (r"rv.*", r"right.?ventric\w*.*"),
    "cavity": (r"lv", r"lv.?(blood.?pool|cavity|blood|bp|endo\w*)", r"(blood.?pool|cavity)",
               r"left.?ventric(le|ular)(.?(blood.?pool|cavity|blood))?"),
    "myocardium": (r"(lv.?)?(normal|healthy|remote)?.?myo(cardium)?.?(normal|healthy|lv)?",
                   r"left.?ventricular.?myocardium", r"lv.?wall", r"lvm(yo)?"),
    "other_wall": (r"o?edema", r"border.?zone", r"gr[ae]y.?zone"),
}


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
    roles: dict = {"other_wall": []}
    for role, given in (told or {}).items():
        roles[role] = _told_value(role, given, names)
    for value, name in names.items():
        if value in roles.values() or value in roles["other_wall"]:
            continue
        role = _role_of(name)
        if role == "other_wall":
            roles["other_wall"].append(value)
        elif role is not None:
            roles.setdefault(role, value)
    missing = [r for r in ("cavity", "myocardium", "scar") if r not in roles]
    if missing:
        raise UserError(
            f"No label is recognised as {', '.join(missing)} among {names}; name it, for "
            f"example: lgesynth roles -d DATASET_ID --{missing[0]} LABEL_NAME")
    return Roles(lge_channel=_lge_channel(dataset_json["channel_names"], channel), **roles)


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
    for role in ("no_reflow", "scar"):   # e.g. "myocardial infarction", "LV scar"
        words = text.split()
        if any(re.fullmatch(p, w) for p in SYNONYMS[role] for w in words):
            return role
    return None


def _lge_channel(channel_names: dict, given: str | int | None) -> int:
    for index, name in channel_names.items():
        if given is not None and str(given).lower() in (str(index), str(name).lower()):
            return int(index)
    if given is not None:
        raise UserError(f"--channel {given}: no such channel; the dataset has {channel_names}.")
    hits = [int(i) for i, n in channel_names.items()
            if re.search(r"\b(lge|de|dcmr|delayed|late)\b", str(n).lower().replace("_", " "))]
    if len(hits) == 1:
        return hits[0]
    if len(channel_names) == 1:
        return int(next(iter(channel_names)))
    raise UserError(f"Which channel is LGE is not clear from {channel_names}; name it with: "
                    "lgesynth roles -d DATASET_ID --channel NAME_OR_INDEX")

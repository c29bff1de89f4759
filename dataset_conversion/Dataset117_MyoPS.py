"""MyoPS 2020 (Zhuang, IEEE TPAMI 2019;41:2933; Li et al., Med Image Anal 2023;87:102808) as an
nnU-Net dataset: 45 patients with infarcts, each with bSSFP (C0), LGE (DE) and T2 on one grid.

Layout read, anywhere below SRC: `train25/myops_training_101_{C0,DE,T2}.nii.gz` with
`train25_myops_gd/myops_training_101_gd.nii.gz`, and `test20/myops_test_201_{C0,DE,T2}.nii.gz`. File
names alone say what a file is; patients without labels become imagesTs. Written from this published
layout, without the release at hand.

    lgesynth convert myops -i SRC -d 117
    lgesynth convert myops -i SRC -d 118 --roi 96 --spacing 1.37

Scars are painted into LGE alone; bSSFP and T2 stay as they are. No `Frame` is written, since the
release does not promise how slices lie in the body: the RV label shows where the septum is, the
sizes of the labelled areas in which order the slices come.
"""

import re
from pathlib import Path

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.raw import Region, SourceCase, write_raw_dataset
from nnunet_lgesynth.dataset.roles import DatasetInfo, Roles

CHANNELS = {"C0": "bSSFP", "DE": "LGE", "T2": "T2"}      # the files' endings, in channel order
LABELS = {"background": 0, "normal myocardium": 1, "LV blood pool": 2, "RV blood pool": 3,
          "oedema": 4, "scar": 5}
VALUES = {0: 0, 200: 1, 500: 2, 600: 3, 1220: 4, 2221: 5}      # the release's -> those of LABELS
ROLES = Roles(cavity=2, myocardium=1, scar=5, rv=3, other_wall=(4,), lge_channel=1)
FILE = re.compile(r"(myops_[a-z]+_\d+)_(C0|DE|T2|gd)\.nii(\.gz)?")


def find_cases(source: Path) -> list[SourceCase]:
    """All MyoPS cases below `source`, sorted by name."""
    found = _files(source)
    if not found:
        raise UserError(f"{source} holds no myops_*_C0, _DE or _T2 file (.nii.gz or .nii); give "
                        "the folder that contains train25, train25_myops_gd and test20 with -i.")
    if not any("gd" in files for files in found.values()):
        raise UserError(f"{source} holds no labels (myops_training_*_gd.nii.gz); give the folder "
                        "that contains train25_myops_gd beside train25 with -i.")
    return [_case(name, files) for name, files in sorted(found.items())]


def _files(source: Path) -> dict[str, dict[str, Path]]:
    """Case -> what a file is (C0, DE, T2, gd) -> the file."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(Path(source).rglob("myops_*.nii*")):
        match = FILE.fullmatch(path.name)
        if match is None:            # e.g. the encrypted labels of the test set
            continue
        name, what = match[1], match[2]
        other = found.setdefault(name, {}).setdefault(what, path)
        if other != path:
            raise UserError(f"{name} has two {what} files, {other} and {path}; remove one.")
    return found


def _case(name: str, files: dict[str, Path]) -> SourceCase:
    missing = [c for c in CHANNELS if c not in files]
    if missing:
        raise UserError(f"{name} has no {' and no '.join(missing)} file ({name}_{missing[0]}.nii.gz"
                        f"), only {', '.join(sorted(files))}; add it, or remove the patient.")
    return SourceCase(name, tuple(files[c] for c in CHANNELS), files.get("gd"), "infarct")


def convert(source: Path, raw: Path, dataset_id: int, region: Region | None = None,
            overwrite: bool = False) -> Path:
    """Write `Dataset<id>_MyoPS` (or `_MyoPSROI` with a region); returns its folder."""
    name = f"Dataset{dataset_id:03d}_MyoPS{'ROI' if region else ''}"
    return write_raw_dataset(raw, name, find_cases(source),
                             channel_names={str(i): c for i, c in enumerate(CHANNELS.values())},
                             labels=LABELS, values=VALUES, info=DatasetInfo(ROLES), region=region,
                             reference="Zhuang, IEEE TPAMI 2019;41:2933; Li et al., Med Image "
                                       "Anal 2023;87:102808",
                             licence="as agreed with https://zmiclab.github.io/zxh/0/myops20",
                             overwrite=overwrite)


if __name__ == "__main__":
    import sys

    from nnunet_lgesynth.cli import main

    sys.exit(main(["convert", "myops", *sys.argv[1:]]))

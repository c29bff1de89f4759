"""EMIDEC (Lalande et al., Data 2020, 5(4):89) as an nnU-Net dataset.

Layout read: `Case_*/Images/Case_*.nii.gz` and `Case_*/Contours/Case_*.nii.gz`; folders without
contours (the official test set) become imagesTs. P = pathological, N = normal.

    lgesynth convert emidec -i SRC -d 115
    lgesynth convert emidec -i SRC -d 116 --roi 96 --spacing 1.37
"""

from pathlib import Path

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.dataset.raw import Region, SourceCase, write_raw_dataset
from nnunet_lgesynth.dataset.roles import DatasetInfo, Frame, Roles

LABELS = {"background": 0, "LV cavity": 1, "normal myocardium": 2, "infarct": 3, "no-reflow": 4}
ROLES = Roles(cavity=1, myocardium=2, scar=3, no_reflow=4)
# Two stacks of one heart: their middle slices correlate by 0.96, no other two cases' by 0.8.
SAME_PATIENT = {"Case_P072": "Case_P059"}
# Columns run to the patient's left, rows to posterior: the RV lies at the image's left.
FRAME = Frame(slices="apex_to_base", anterior=(-1.0, 0.0), septal=(0.0, -1.0))


def find_cases(source: Path) -> list[SourceCase]:
    """All EMIDEC cases below `source`, sorted by name."""
    cases = []
    for folder in sorted(Path(source).glob("Case_*")):
        image = _only_nifti(folder / "Images")
        if image is None:
            raise UserError(f"{folder} holds no Images/*.nii.gz; the official EMIDEC layout is "
                            "Case_X/Images/Case_X.nii.gz.")
        stratum = "pathological" if folder.name.startswith("Case_P") else "normal"
        cases.append(SourceCase(folder.name, (image,), _only_nifti(folder / "Contours"), stratum,
                                SAME_PATIENT.get(folder.name)))
    if not cases:
        raise UserError(f"{source} holds no Case_* folder; give the folder that contains them "
                        "with -i.")
    return cases


def _only_nifti(folder: Path) -> Path | None:
    files = sorted(p for p in folder.glob("*.nii*") if not p.name.startswith("."))
    if len(files) > 1:
        raise UserError(f"{folder} holds {len(files)} NIfTI files, one is expected.")
    return files[0] if files else None


def convert(source: Path, raw: Path, dataset_id: int, region: Region | None = None,
            overwrite: bool = False) -> Path:
    """Write `Dataset<id>_EMIDEC` (or `_EMIDECROI` with a region); returns its folder."""
    name = f"Dataset{dataset_id:03d}_EMIDEC{'ROI' if region else ''}"
    return write_raw_dataset(raw, name, find_cases(source), channel_names={"0": "LGE"},
                             labels=LABELS, info=DatasetInfo(ROLES, FRAME), region=region,
                             reference="Lalande et al., Data 2020, 5(4):89",
                             licence="CC BY-NC-SA 4.0", overwrite=overwrite)


if __name__ == "__main__":
    import sys

    from nnunet_lgesynth.cli import main

    sys.exit(main(["convert", "emidec", *sys.argv[1:]]))

"""What is wrong with a set-up, and the remedy: `lgesynth doctor`.

    install, folders, disk, trainers, device, workers, and a dataset's fold (`doctor_dataset`)
        ->  findings: ok, warning or error, each with one sentence and its remedy

A check is a generator of (status, message, remedy); the checks run apart from each other, and an
exception in one becomes a finding. Nothing is changed on disk. Trainers are looked up by nnU-Net's
own function in a fresh process, since that is what `nnUNetv2_train` will do.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from nnunet_lgesynth.config import UserError
from nnunet_lgesynth.discovery import VARIABLE, in_environment
from nnunet_lgesynth.doctor_dataset import DATASET_CHECKS, Target

__all__ = ["Finding", "examine"]

PACKAGES = (            # distribution, oldest version as in setup.cfg, what must load from it
    ("torch", "2.6", "nn"),
    ("torchvision", "0", "ops"),
    ("nnunetv2", "2.8.1", "paths"),
    ("diffusers", "0.32", "AutoencoderKL"),
    ("transformers", "4.48", "BertModel"),
    ("accelerate", "1.2", "Accelerator"),
    ("scipy", "1.15", "stats"),
)
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
MIN_FREE_GB = 2
LOOKUP_SECONDS = 180
LOOKUP = """import sys
sys.path = [p for p in sys.path if p]     # as in a console script: not the working directory
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
find("nnUNetTrainerLGESynth")"""


@dataclass(frozen=True)
class Finding:
    """One result: `status` is "ok", "warning" or "error"; `remedy` is empty where all is well."""

    check: str
    status: str
    message: str
    remedy: str = ""


def examine(dataset_id: int | str | None = None, configuration: str = "2d",
            plans: str = "nnUNetPlans", fold: int | str = 0,
            device: str | None = None) -> list[Finding]:
    """All findings on this machine and, with a dataset (id or name), on one of its folds.

    `device` is what training will be asked to run on ("cuda", "cpu", "mps"); None: nnU-Net's
    default. Does not raise for what is wrong with the user's set-up, reports it.
    """
    findings = _run("python", _python)
    for package in PACKAGES:
        findings += _run(package[0], _package, *package)
    for variable in FOLDERS:
        findings += _run(variable, _folder, variable)
    findings += _run("disk", _disk) + _run("trainers", _trainers)
    findings += _run("device", _device, device) + _run("workers", _workers)
    if dataset_id is None:
        return findings
    findings += _run("dataset", _dataset, dataset_id, fold)
    if findings[-1].status == "ok":
        target = Target(_dataset_name(dataset_id), configuration, plans,
                        fold if fold == "all" else int(fold))
        for check, function in DATASET_CHECKS.items():
            findings += _run(check, function, target)
    return findings


def _run(check: str, function, *arguments) -> list[Finding]:
    """The findings of one check; whatever it raises becomes its last one."""
    found = []
    try:
        for row in function(*arguments):
            found.append(Finding(check, *row))
    except UserError as error:
        message, _, remedy = str(error).rpartition("; ")
        found.append(Finding(check, "error", f"{message or remedy}.", remedy))
    except Exception as error:   # a broken install raises anything, and the other checks go on
        found.append(Finding(check, "error", f"{type(error).__name__}: {_first_line(error)}",
                             "correct what the message names, then run: lgesynth doctor"))
    return found


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", version.partition("+")[0])[:3])


def _python():
    yield "ok", f"Python {platform.python_version()} at {sys.executable}."


def _package(name: str, oldest: str, part: str):
    remedy = f"pip install --upgrade '{name}>={oldest}'"
    if name == "torchvision":      # must be built for the installed torch
        remedy = "pip install --force-reinstall torch torchvision   (one command, one index)"
    try:
        version = metadata.version(name)
        module = import_module(name)
        if not hasattr(module, part):
            import_module(f"{name}.{part}")
    except metadata.PackageNotFoundError:
        yield "error", f"{name} is not installed.", remedy
    except Exception as error:   # e.g. RuntimeError from a torchvision of another torch
        yield "error", f"{name} does not import ({_first_line(error)}).", remedy
    else:
        if _numbers(version) < _numbers(oldest):
            yield "error", f"{name} {version} is older than {oldest}.", remedy
        else:
            yield "ok", f"{name} {version}."


def _folder(variable: str):
    folder = os.environ.get(variable)
    if not folder:
        yield "error", f"{variable} is not set.", f"export {variable}=/path/to/{variable}"
    elif not Path(folder).is_dir():
        yield "error", f"{variable}={folder} does not exist.", f"mkdir -p {folder}"
    else:
        try:
            with tempfile.TemporaryFile(dir=folder):
                yield "ok", f"{folder} is writable."
        except OSError as error:
            needed = "warning" if variable == "nnUNet_raw" else "error"
            yield (needed, f"{folder} is not writable ({error.strerror}).",
                   f"chmod u+w {folder}, free space, or point {variable} elsewhere")


def _disk():
    folders = [os.environ[v] for v in FOLDERS if Path(os.environ.get(v) or "-").is_dir()]
    seen = {}
    for folder in folders:
        seen.setdefault(os.stat(folder).st_dev, folder)
    for folder in seen.values():
        free = shutil.disk_usage(folder).free / 1e9
        if free < MIN_FREE_GB:
            yield ("warning", f"Only {free:.1f} GB are free at {folder}.",
                   f"free at least {MIN_FREE_GB} GB for checkpoints and pools")
        else:
            yield "ok", f"{free:.0f} GB free at {folder}."


def _trainers():
    try:
        lookup = subprocess.run([sys.executable, "-c", LOOKUP], capture_output=True, text=True,
                                timeout=LOOKUP_SECONDS)
    except subprocess.TimeoutExpired:
        yield ("warning", f"nnU-Net's search for the trainers took over {LOOKUP_SECONDS} s.",
               "run lgesynth doctor again when the machine is less busy")
        return
    if lookup.returncode == 0:
        yield "ok", "nnU-Net finds nnUNetTrainerLGESynth in a fresh process."
    elif not in_environment():
        yield ("error", f"nnU-Net does not find the trainers: {VARIABLE} does not name their "
               "folder (only `lgesynth train` sets it for you).",
               f'export {VARIABLE}="$(lgesynth trainers --path)"')
    else:
        last = [line for line in lookup.stderr.splitlines() if line.strip()] or ["no message"]
        yield ("error", f"nnU-Net's search for the trainers fails ({last[-1].strip()}).",
               f"one failing file in any folder of {VARIABLE} ends the search: mend or remove it")


def _device(device: str | None):
    import torch

    if device is None and not torch.cuda.is_available():
        yield ("warning", "No CUDA device, and nnU-Net asks for one by default.",
               "add to every command: -device cpu")
        return
    wanted = torch.device(device or "cuda")
    try:
        (torch.zeros(8, device=wanted) + 1).sum().item()
    except Exception as error:   # driver and build mismatches raise many types
        yield ("error", f"Device {wanted} is not usable ({_first_line(error)}).",
               "add -device cpu, or install a PyTorch build that matches the driver")
    else:
        name = torch.cuda.get_device_name() if wanted.type == "cuda" else platform.machine()
        yield "ok", f"Device {wanted} ({name}) computes."


def _workers():
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    text, cpus = os.environ.get("nnUNet_n_proc_DA"), os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    advice = f"export nnUNet_n_proc_DA={max(1, cpus // 2)}"
    if text is not None and not text.strip().isdigit():
        yield "error", f"nnUNet_n_proc_DA={text} is not a whole number.", advice
        return
    workers = get_allowed_n_proc_DA()
    if workers > max(1, cpus // 2) and (cpus <= 4 or workers > cpus):
        yield ("warning", f"{workers} augmentation processes and half as many for validation "
               f"share {cpus} CPUs with the training itself.", advice)
    else:
        yield "ok", f"{workers} augmentation processes on {cpus} CPUs."


def _dataset_name(dataset_id: int | str) -> str:
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        return str(maybe_convert_to_dataset_name(dataset_id))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"nnU-Net: {_first_line(error).partition('. ')[0]}; give -d the id of a "
                        "dataset in nnU-Net's folders, or make one: lgesynth convert emidec -i "
                        f"SRC -d {dataset_id}") from error


def _dataset(dataset_id: int | str, fold: int | str):
    name = _dataset_name(dataset_id)
    if re.fullmatch(r"all|\d+", str(fold)):
        yield "ok", f"{name}, fold {fold}."
    else:
        yield "error", f"Fold {fold} is neither a number nor 'all'.", "give -f 0 to 4, or all"

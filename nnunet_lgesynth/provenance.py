"""Where numbers come from: versions, commit and machine of the process that made them."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from nnunet_lgesynth import __version__

__all__ = ["machine", "package_commit", "versions"]


def package_commit() -> str:
    """The version, and the git commit where the package is run from its own checkout."""
    version = __version__
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return version
    try:
        done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty",
                               "--exclude=*"], capture_output=True, text=True, check=False)
    except OSError:
        return version
    commit = done.stdout.strip()
    return f"{version}+g{commit}" if done.returncode == 0 and commit else version


def versions() -> dict[str, str]:
    """Of the plugin (with its commit), Python and what numbers depend on."""
    names = ("nnunetv2", "torch", "diffusers", "transformers", "numpy", "scipy")
    found = {"nnunet_lgesynth": package_commit(), "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine(device: str) -> str:
    """One line on where numbers were measured."""
    text = f"{device}, {os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}"
    if device == "cuda":
        import torch

        text += f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return text

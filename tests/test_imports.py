"""Imports run down the stages only, and diffusion libraries are loaded by one folder alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nnunet_lgesynth"
STAGES = ("dataset", "anatomy", "judge", "generators", "pool", "trainer", "benchmark")
# every stage may use these, they use no stage
BASE = ("config", "discovery", "files", "precision", "presets", "processes", "provenance",
        "__init__", "__version__")
HEAVY = {"diffusers", "transformers"}
FILES = sorted(PACKAGE.rglob("*.py"))
TRAINERS = sorted(p for p in (ROOT / "trainers").glob("*.py") if p.stem != "__init__")


def imports(path: Path) -> set[str]:
    """Dotted names a file imports anywhere, functions included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def stage(parts) -> int | None:
    """Position of a module in the list of stages; above all of them if it is a front end."""
    first = Path(parts[0]).stem
    if first in BASE:
        return None
    return STAGES.index(first) if first in STAGES else len(STAGES)


def violations(files) -> list[str]:
    found = []
    for path in files:
        own = stage(path.relative_to(PACKAGE).parts)
        for name in imports(path):
            parts = name.split(".")
            if parts[0] != PACKAGE.name or len(parts) < 2:
                continue
            other = stage(parts[1:])
            if other is not None and (own is None or other > own):
                found.append(f"{path.relative_to(ROOT)} imports {name}")
    return found


def test_stages_exist():
    for name in STAGES:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name


def test_imports_run_down_the_stages():
    assert len(FILES) > 15
    assert violations(FILES) == []


def test_the_check_sees_an_upward_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path / PACKAGE.name)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / PACKAGE.name / "anatomy").mkdir(parents=True)
    file = tmp_path / PACKAGE.name / "anatomy" / "bad.py"
    file.write_text("def f():\n    from nnunet_lgesynth.pool.store import Pool\n"
                    "from nnunet_lgesynth.dataset.roles import Roles\n")
    assert violations([file]) == [
        "nnunet_lgesynth/anatomy/bad.py imports nnunet_lgesynth.pool.store.Pool"]


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_only_the_inpainter_imports_diffusion_libraries(library):
    users = {p for p in [*FILES, *TRAINERS] if any(n.split(".")[0] == library
                                                  for n in imports(p))}
    assert users, "the check would pass on an empty package"
    assert {p.parent.relative_to(PACKAGE).as_posix() for p in users} == {"generators/inpaint"}


def test_front_ends_load_without_diffusion_libraries():
    code = ("import importlib.util, sys\n"
            "import nnunet_lgesynth.cli\n"
            "assert 'torch' not in sys.modules, 'lgesynth --help would wait for torch'\n"
            "for path in sys.argv[1:]:\n"
            "    spec = importlib.util.spec_from_file_location('trainer_under_test', path)\n"
            "    spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
            f"assert not {HEAVY} & set(sys.modules), {HEAVY} & set(sys.modules)\n")
    result = subprocess.run([sys.executable, "-c", code, *map(str, TRAINERS)], cwd=ROOT,
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr

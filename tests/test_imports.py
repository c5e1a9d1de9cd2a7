"""Who may import whom: the arrows of docs/architecture.md, read from the source with ast."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EVERYBODY = {
    "",
    "batch",
    "sample",
    "draws",
    "device",
    "config",
    "spec",
    "shipped",
    "progress",
    "provenance",
}  # "": padpolicy/__init__.py
POLICY_PARTS = {"encoders", "model", "diffusion", "data.normalizer", "data.actions", "data.latents"}
ALLOWED: dict[str, set[str]] = {
    "sample": set(),
    "batch": {"sample"},
    "draws": set(),
    "device": set(),
    "shipped": set(),
    "config": {"config", "shipped"},
    "spec": {"config"},
    "progress": set(),
    "provenance": {""},
    "": set(),
    "data": {"data"},
    "encoders": {"encoders"},
    "model": {"model"},
    "diffusion": {"diffusion"},
    "fields": POLICY_PARTS,
    "policy": {"policy", "fields"} | POLICY_PARTS,
    "saving": {"policy"} | POLICY_PARTS,
    "released": {"policy", "saving"} | POLICY_PARTS,
    "control": {"control", "policy", "saving", "data.actions", "data.letterbox", "encoders.fingerprint"},
    "evaluation": {"evaluation", "control", "policy", "saving", "data"},
    "training": {"training", "evaluation", "control", "policy", "saving", "released", "data"} | POLICY_PARTS,
}
TOP = {
    "cli",
    "settings",
    "info",
    "info_page",
    "doctor",
    "quickstart",
    "bench",
    "label",
    "deploy",
}  # what a person calls: may import everything


def imported(path: Path, root: Path) -> set[str]:
    """Absolute dotted names that a file imports, wherever in the file; relative imports resolved."""
    package = list(path.relative_to(root).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def ours(path: Path) -> set[str]:
    """What a file of padpolicy imports of padpolicy: "data.store", "batch", ... (names inside modules cut off)."""
    found = set()
    for name in imported(path, ROOT):
        if name == "padpolicy" or name.startswith("padpolicy."):
            parts = name.split(".")[1:]
            while parts and not _is_module(parts):
                parts.pop()
            found.add(".".join(parts))
    return found


def _is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath("padpolicy", *parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


FILES = sorted((ROOT / "padpolicy").rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT / "padpolicy").with_suffix("").parts).removesuffix("__init__").strip(".")
    part = module.split(".")[0]
    if part in TOP:
        return
    assert part in ALLOWED, (
        f"padpolicy.{part} has no place among the arrows: give it one in docs/architecture.md and here"
    )
    allowed = ALLOWED[part] | (EVERYBODY if part not in EVERYBODY else set())
    wrong = {name for name in ours(path) if name not in allowed and name.split(".")[0] not in allowed}
    assert not wrong, f"padpolicy.{module} must not import {sorted(wrong)}"


def test_environments_import_nothing_of_padpolicy() -> None:
    for path in (ROOT / "envs").rglob("*.py"):
        wrong = {n for n in imported(path, ROOT / "envs") if n == "padpolicy" or n.startswith("padpolicy.")}
        assert not wrong, f"{path.name} imports {sorted(wrong)}"


LIGHT = [
    "padpolicy",
    "padpolicy.cli",
    "padpolicy.config",
    "padpolicy.sample",
    "padpolicy.control.chunking",
    "padpolicy.control.client",
    "padpolicy.control.clock",
    "padpolicy.control.planner",
    "padpolicy.control.controller",
    "padpolicy.control.robot",
    "padpolicy.control.robots.lerobot",
    "padpolicy.control.robots.process",
    "padpolicy.control.safety",
    "padpolicy.control.server",
    "padpolicy.control.track",
    "padpolicy.control.watch",
    "padpolicy.control.wire",
    "padpolicy.data.actions",
    "padpolicy.deploy",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_bring_no_torch(module: str) -> None:
    """The command answers at once, and the robot's computer needs neither torch nor the policy."""
    code = f"import sys, {module}; print(sorted({{'torch', 'padpolicy.policy', 'hydra'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_resolution_of_relative_imports(tmp_path: Path) -> None:
    folder = tmp_path / "pkg" / "sub"
    folder.mkdir(parents=True)
    file = folder / "x.py"
    file.write_text("from ..other import thing\nfrom . import sibling\nimport a.b\n")
    assert imported(file, tmp_path) == {"pkg.other.thing", "pkg.sub.sibling", "a.b"}

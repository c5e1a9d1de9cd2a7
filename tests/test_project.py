"""The project around the code: what is promised in README, pyproject and the lock file is there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from padpolicy import cli, config, doctor

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MEGABYTES = {
    "data/weights/tabletop": 12,
    "data/weights/metaworld10": 12,
    "data/weights/text": 8,
    "data/weights/vae": 3,
    "data/sample": 12,
}


def commands() -> list[list[str]]:
    """The `padpolicy …` lines of README, docs/families.md and of the heads of the recipes, as arguments."""
    texts = [
        (ROOT / "README.md").read_text(),
        (ROOT / "docs" / "families.md").read_text().replace("    padpolicy", "padpolicy"),
    ]
    texts += [path.read_text() for path in (ROOT / "configs" / "experiment").glob("*.yaml")]
    lines = re.findall(
        rf"^(?:# )?(?:.*By hand: )?padpolicy ((?:{'|'.join(cli.VERBS)}) .*)$", "\n".join(texts), re.MULTILINE
    )
    return [shlex.split(re.split(r"\s{3,}", line)[0]) for line in lines]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_documented_commands_are_accepted(command: list[str]) -> None:
    verb, *arguments = command
    assert verb in cli.VERBS
    if verb in cli.CONFIGURED:
        config.load(verb, cli.as_settings(verb, [a[1:-1] if a[0] == "[" else a for a in arguments]))


def test_what_the_wheel_includes_exists() -> None:
    wheel = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    for path in [*wheel["packages"], *wheel["force-include"]]:
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(("folder", "limit"), MEGABYTES.items())
def test_what_ships_is_small(folder: str, limit: int) -> None:
    size = sum(path.stat().st_size for path in (ROOT / folder).rglob("*") if path.is_file())
    assert 0 < size <= limit * 1e6, f"{folder} has {size / 1e6:.1f} MB"


def test_nothing_pickled_ships() -> None:
    bad = [
        path for path in (ROOT / "data").rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".ckpt", ".npy", ".bin")
    ]
    assert not bad


def test_locked_versions_are_inside_the_ranges_and_name_no_place() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^-|@ ", text, re.MULTILINE)
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE):
        locked.setdefault(name, []).append(version)
    for requirement in PYPROJECT["project"]["dependencies"]:
        name, bounds = doctor._parse(requirement)
        assert locked.get(name), f"{name} is not locked"
        assert all(doctor._holds(version, *bound) for version in locked[name] for bound in bounds), requirement


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", *[str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))]],
)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if not link.startswith("http"):
            assert (path.parent / link).exists(), link


def test_the_changelog_knows_the_version() -> None:
    assert f"## {PYPROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_gymnasium_knows_the_environment_without_an_import_of_ours() -> None:
    code = (
        "import sys, gymnasium; assert not {'mujoco', 'padpolicy_envs'} & set(sys.modules); "
        "spec = gymnasium.spec('padpolicy/Tabletop-v0'); import padpolicy_envs; "
        "assert spec == gymnasium.spec('padpolicy/Tabletop-v0'); print(spec.entry_point)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "padpolicy_envs.tabletop:Tabletop"

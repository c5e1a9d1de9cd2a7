"""`padpolicy doctor`: what this machine has, and what to do about what is missing.

Nothing here needs the library to work: each check stands alone, and one that breaks says so instead of ending the rest.
GL is probed in a process of its own, because a driver that crashes would take the report with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

OK, WARN, FAIL = "ok", "warn", "fail"
WEIGHTS = ("vae", "text", "tabletop")  # what ships: image encoder, text encoder, policy


@dataclass
class Line:
    """One finding. `advice` is what to do, empty where there is nothing to do."""

    name: str
    status: str  # ok, warn (works, with a limit) or fail (padpolicy cannot be used)
    found: str
    advice: str = ""


def examine() -> list[Line]:
    """All checks, in reading order."""
    lines: list[Line] = []
    checks: list[Callable[[], Iterator[Line]]] = [
        _python, _packages, _torch, _machine, _rays, _gl, _video, _shipped_weights, _environment,
    ]  # fmt: skip
    for check in checks:
        try:
            lines += check()
        except Exception as error:  # a broken installation is what a doctor is for
            name = check.__name__.strip("_").replace("_", " ")
            lines.append(
                Line(
                    name,
                    FAIL,
                    f"{type(error).__name__}: {error}",
                    "Reinstall padpolicy: pip install --force-reinstall padpolicy.",
                )
            )
    return lines


def report(as_json: bool = False) -> int:
    """Prints what was found. Returns 0 if padpolicy can be used here, else 1."""
    lines = examine()
    usable = all(line.status != FAIL for line in lines)
    if as_json:
        print(json.dumps({"usable": usable, "checks": [asdict(line) for line in lines]}, indent=1))
        return 0 if usable else 1
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("", "", "found", "what to do", box=None, pad_edge=False)
    colours = {OK: "green", WARN: "yellow", FAIL: "red"}
    for line in lines:
        mark = f"[{colours[line.status]}]{line.status}[/]"
        table.add_row(mark, line.name, line.found.replace("[", "\\["), line.advice.replace("[", "\\["))
    console.print(table)
    console.print(
        "padpolicy can be used here."
        if usable
        else "padpolicy cannot be used here until the lines marked fail are mended."
    )
    return 0 if usable else 1


def _python() -> Iterator[Line]:
    version = platform.python_version()
    ok = sys.version_info >= (3, 11)
    yield Line(
        "python", OK if ok else FAIL, f"{version} on {platform.platform()}", "" if ok else "Use Python 3.11 or newer."
    )


def _packages() -> Iterator[Line]:
    """Installed versions against the ranges that padpolicy's own metadata states."""
    try:
        requirements = metadata.requires("padpolicy") or []
    except metadata.PackageNotFoundError:
        yield Line("padpolicy", WARN, "running from a source tree that is not installed", "Run: pip install -e .")
        return
    yield Line("padpolicy", OK, metadata.version("padpolicy"))
    wrong, newest = [], []
    for requirement in requirements:
        if "extra ==" in requirement:
            continue
        name, bounds = _parse(requirement)
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if not all(_holds(version, *bound) for bound in bounds):
            wrong.append(f"{name} {version}, needs {requirement.split(';')[0]}")
        newest.append(name)
    if wrong:
        yield Line("packages", FAIL, "; ".join(wrong), "Run: pip install --upgrade padpolicy")
    else:
        yield Line("packages", OK, f"{len(newest)} dependencies inside their ranges")


def _parse(requirement: str) -> tuple[str, list[tuple[str, str]]]:
    """`"zarr<4,>=3.0.5"` -> ("zarr", [("<", "4"), (">=", "3.0.5")])."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return name.group(), re.findall(r"(==|>=|<=|<|>)\s*([0-9][0-9.]*)", requirement.split(";")[0])


def _holds(version: str, relation: str, bound: str) -> bool:
    def numbers(text: str) -> list[int]:
        parts = [int(n) for n in re.findall(r"\d+", re.match(r"[0-9.]*", text).group())][:4]  # type: ignore[union-attr]
        return parts + [0] * (4 - len(parts))

    a, b = numbers(version), numbers(bound)
    return {"==": a == b, ">=": a >= b, "<=": a <= b, "<": a < b, ">": a > b}[relation]


def _torch() -> Iterator[Line]:
    import torch

    yield Line("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(i)
            yield Line(f"gpu {i}", OK, f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield Line("gpu", OK, "Apple GPU (mps), not used: device=auto takes the CPU here, device=mps is untried")
    else:
        found = "none; the CPU is used (shipped policies and quickstart are made for it)"
        if shutil.which("nvidia-smi"):
            yield Line("gpu", WARN, found, "An NVIDIA driver is here: install a CUDA build of torch.")
        else:
            yield Line("gpu", OK, found)


def _machine() -> Iterator[Line]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS")
    yield Line("cores", OK, f"{cores} usable" + (f", OMP_NUM_THREADS={threads}" if threads else ""))
    free = _free_memory()
    if free is not None:
        advice = "Training needs about 3 GiB; close something or use a smaller training.batch_size."
        yield _room("memory", free, 3 * 2**30, f"{free / 2**30:.1f} GiB free", advice)
    disk = shutil.disk_usage(Path.cwd()).free
    yield _room(
        "disk", disk, 2 * 2**30, f"{disk / 2**30:.1f} GiB free in {Path.cwd()}", "Make room, or choose another out=."
    )


def _room(name: str, free: int, enough: int, found: str, advice: str) -> Line:
    return Line(name, OK, found) if free >= enough else Line(name, WARN, found, advice)


def _free_memory() -> int | None:
    """Bytes that a program could take now, or None where the system does not say (only Linux does)."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found.group(1)) * 1024 if found else None


def _probe(code: str, **environment: str) -> tuple[bool, str]:
    """Runs code in a fresh Python. Returns whether it worked, and its last line of output."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
        )
    except subprocess.TimeoutExpired:
        return False, "no answer within 60 s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else f"exit code {done.returncode}"


def _rays() -> Iterator[Line]:
    code = (
        "import gymnasium; env = gymnasium.make('padpolicy/Tabletop-v0'); env.reset(seed=0); "
        "env.step(env.action_space.sample()); env.close(); import mujoco; print(mujoco.__version__)"
    )
    works, words = _probe(code)
    if works:
        yield Line("simulation", OK, f"padpolicy/Tabletop-v0 on mujoco {words}, drawn by rays (no GL needed)")
    else:
        yield Line("simulation", FAIL, words, "Reinstall: pip install --force-reinstall padpolicy mujoco")


def _gl() -> Iterator[Line]:
    """Which library draws off-screen; the error says what to install."""
    works, words = _probe("from padpolicy_envs import gl; print(gl.open_context())")
    if works:
        yield Line("GL", OK, f"{words} (for env=metaworld, and env.renderer=gl on the tabletop)")
    else:
        yield Line("GL", OK, "none found; env=tabletop needs none", f"For env=metaworld: {words}")


def _video() -> Iterator[Line]:
    """Writes and reads a film of four frames, as the report and the video source do."""
    import av
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "probe.mp4")
        with av.open(path, "w") as film:
            stream = film.add_stream("libx264", rate=10)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            for _ in range(4):
                film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            film.mux(stream.encode(None))
        with av.open(path) as film:
            frames = sum(1 for _ in film.decode(video=0))
    ok = frames == 4
    yield Line(
        "video", OK if ok else FAIL, f"PyAV {av.__version__} writes and reads mp4", "" if ok else "Reinstall av."
    )


def _shipped_weights() -> Iterator[Line]:
    """Size and fingerprint of each folder of weights."""
    from padpolicy.shipped import shipped

    folders = []
    for name in WEIGHTS:
        try:
            folders.append(shipped(f"data/weights/{name}"))
        except FileNotFoundError as error:
            yield Line(f"weights {name}", FAIL, str(error), "Install padpolicy from a wheel or a complete checkout.")
    for folder in folders:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
        size = sum(path.stat().st_size for path in files)
        found = f"{size / 1e6:.1f} MB, sha256 {digest.hexdigest()[:12]}"
        if any(path.suffix == ".safetensors" for path in files):
            yield Line(f"weights {folder.name}", OK, found)
        else:
            yield Line(f"weights {folder.name}", FAIL, found, "The folder holds no weights: reinstall padpolicy.")


def _environment() -> Iterator[Line]:
    """Settings of the shell that change what padpolicy does."""
    names = ("CUDA_VISIBLE_DEVICES", "MUJOCO_GL", "HF_HUB_OFFLINE", "HF_HOME", "PADPOLICY_DEBUG")
    there = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    if there:
        yield Line("shell", OK, ", ".join(there))

"""The `padpolicy` command: verbs only, each a few lines that call the library.

Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from padpolicy import __version__, config
from padpolicy.settings import settings_help

USAGE = """\
padpolicy: a robot policy from demonstrations and videos, by denoising the future and the actions together

  padpolicy quickstart [out=DIR]                         a policy in closed loop and one trained here, as a page
  padpolicy collect env=tabletop episodes_per_task=N seed=S out=PATH     demonstrations by scripted experts
  padpolicy train experiment=NAME [data.path=PATH] out=DIR               the same command again resumes
  padpolicy eval checkpoint=DIR|tabletop env=NAME out=DIR                success table, videos, one HTML page
  padpolicy serve checkpoint=DIR|tabletop [port=8000]                    a policy over websockets
  padpolicy deploy checkpoint=DIR|tabletop robot=NAME out=DIR            it drives a robot, with a live page
  padpolicy replay PATH robot=NAME out=DIR                               a recorded episode drives it again
  padpolicy convert SRC DST [--to FORMAT]                other people's recordings in, or ours out; --help
  padpolicy encode PATH encoder=NAME                     latents once, beside the pixels
  padpolicy label PATH checkpoint=DIR out=PATH           actions for frames that have none, read off them
  padpolicy validate PATH [--against TEST] [--json]      is this dataset sound? exit code 1 if not
  padpolicy info PATH [--html FILE]                      what is in a dataset or a checkpoint; a dataset as a page
  padpolicy doctor [--json]                              what this machine has, and what to do about the rest
  padpolicy bench [out=FILE]                             how fast this machine acts, steps environments and trains
  padpolicy bench latency [steps=[1,2,4]] [out=FILE]     one plan stage by stage, beside PAD's settings
  padpolicy bench family out=DIR                         ours, PAD, Diffusion Policy, UniPi and SuSIE, trained alike
  padpolicy --version

Settings are key=value. `padpolicy VERB --help` lists them with their defaults; `padpolicy VERB … --cfg` prints what
would run. Exit codes: 0 done, 1 findings (validate, doctor), 2 something you gave cannot be used.
PADPOLICY_DEBUG=1 shows the traceback behind an error."""

CONFIGURED = ("quickstart", "collect", "train", "eval", "serve", "encode", "label", "deploy", "replay", "bench")
POSITIONAL = {
    "encode": "path",
    "label": "path",
    "replay": "path",
    "bench": "what",
}  # a first argument without = is this setting


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns the exit code; a user's error is one paragraph on stderr and exit code 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `padpolicy info … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not _is_users(error) or os.environ.get("PADPOLICY_DEBUG"):
            raise
        print(f"error: {_paragraph(error)}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"padpolicy {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise config.ConfigError(f"unknown command {verb!r}. padpolicy knows: {', '.join(VERBS)}.")
    about = inspect.getdoc(VERBS[verb]) or ""
    if ("-h" in rest or "--help" in rest) and verb != "convert":
        print(settings_help(verb, about) if verb in CONFIGURED else about)
        return 0
    if verb not in CONFIGURED:
        return VERBS[verb](rest)
    show_only = "--cfg" in rest
    rest = as_settings(verb, rest)
    flags = [a for a in rest if a.startswith("--") and a != "--cfg"]
    if flags:
        raise config.ConfigError(f"padpolicy {verb} has no option {flags[0]}; settings are written key=value.")
    cfg = config.load(verb, [a for a in rest if a != "--cfg"])
    if show_only:
        print(config.dump(cfg), end="")
        return 0
    return VERBS[verb](cfg)


def as_settings(verb: str, arguments: list[str]) -> list[str]:
    """`padpolicy encode PATH …` is `padpolicy encode path=PATH …`."""
    first = arguments[0] if arguments else ""
    if verb in POSITIONAL and first and not first.startswith("-") and "=" not in first:
        return [f"{POSITIONAL[verb]}={first}", *arguments[1:]]
    return arguments


def quickstart(cfg: config.QuickstartConfig) -> int:
    """See the shipped policy act, train a small one here, and get a page about both."""
    from padpolicy.quickstart import quickstart

    quickstart(cfg)
    return 0


def collect(cfg: config.CollectConfig) -> int:
    """Scripted experts write demonstrations, in parallel."""
    from padpolicy.data.collect import collect
    from padpolicy.progress import counted_bar

    with counted_bar("episodes") as advance:
        path = collect(cfg, advance)
    print(f"Collected: {path}. Next: padpolicy info {path}")
    return 0


def train(cfg: config.TrainConfig) -> int:
    """Train a policy; the same command again resumes."""
    from padpolicy.progress import bar
    from padpolicy.training.loop import train

    with bar("training", cfg.training.steps) as advance:
        out = train(cfg, lambda step, numbers: advance(step, _brief(numbers)))
    print(f"Trained: {out}. Next: padpolicy eval checkpoint={out} out={out}/evaluation")
    return 0


def evaluate(cfg: config.EvalConfig) -> int:
    """Run a policy in closed loop and write results.json, videos and a page."""
    from padpolicy.evaluation import evaluate

    results = evaluate(cfg)
    low, high = results["ci95"]
    interval = f"95 % interval {low:.1%} to {high:.1%}, {results['episodes']} episodes"
    print(f"success {results['success_rate']:.1%} ({interval}); page: {Path(cfg.out) / 'index.html'}")
    return 0


def serve(cfg: config.ServeConfig) -> int:
    """A policy over websockets, for padpolicy's light client and openpi's, until Ctrl-C."""
    import warnings

    from padpolicy.control.planner import local_brain
    from padpolicy.control.server import serve

    warnings.filterwarnings("ignore", message="the instruction ")  # would be remembered for every sentence that comes
    brain = local_brain(cfg.checkpoint, cfg.device, cfg.threads, cfg.compile)
    serve(cfg, brain, brain.spec, brain.imagines)
    return 0


def validate(arguments: list[str]) -> int:
    """padpolicy validate PATH [--against TEST] [--json]

    Reads a whole dataset and lists what is wrong with it; with --against also what it has in common with the dataset
    that it will be tested on. Exit code 0: sound; 1: errors; 2: not a dataset.
    """
    import json
    from dataclasses import asdict, make_dataclass

    from padpolicy.settings import parse_options

    options: type[Any] = make_dataclass("Options", [("against", str, ""), ("json", bool, False)])
    given, paths = parse_options(options, arguments)
    path = _path("validate", paths, "PATH [--against TEST] [--json]")
    from padpolicy.data.validate import validate
    from padpolicy.progress import bar

    with bar("validating", 100) as advance:
        findings = validate(path, lambda share: advance(round(100 * share), ""), given.against or None)
    errors = [finding for finding in findings if finding.level == "error"]
    if given.json:
        print(json.dumps({"path": str(path), "sound": not errors, "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        print("\n".join(f"{f.level}: {f.where}: {f.message}" for f in findings) or f"{path}: sound")
    return 1 if errors else 0


def convert(arguments: list[str]) -> int:
    """padpolicy convert SRC DST [--to ours|replay_buffer|lerobot] [options]

    Reads whatever recording is at SRC (our own stores, LeRobotDataset v2.0 to v3.0, ReplayBuffer zarr, robomimic HDF5,
    RLDS tfrecords, folders of video files) and writes it at DST. The same command again goes on where one was stopped.
    """
    from padpolicy.data.convert import Options, convert
    from padpolicy.progress import counted_bar
    from padpolicy.settings import options_help, parse_options

    if "-h" in arguments or "--help" in arguments:
        print("\n".join([inspect.getdoc(VERBS["convert"]) or "", "", *options_help(Options)]))
        return 0
    to = "ours"
    for i, argument in enumerate(arguments):
        if argument == "--to" or argument.startswith("--to="):
            to = argument.partition("=")[2] or "".join(arguments[i + 1 : i + 2])
            arguments = arguments[:i] + arguments[i + (1 if "=" in argument else 2) :]
            break
    options, paths = parse_options(Options, arguments)
    if len(paths) != 2:
        raise config.ConfigError(f"usage: padpolicy convert SRC DST [--to FORMAT] [options]; got {len(paths)} paths.")
    with counted_bar("episodes") as advance:
        done = convert(paths[0], paths[1], to, options, advance)
    for note in done.notes:
        print(f"note: {note}")
    for name, reason in list(done.skipped.items())[:10]:
        print(f"left out: {name}: {reason}")
    if len(done.skipped) > 10:
        print(f"left out: {len(done.skipped) - 10} more")
    print(f"Converted {done.format}: {done.episodes} episodes. Next: padpolicy validate {done.path}")
    return 0


def encode(cfg: config.EncodeConfig) -> int:
    """Every frame of PATH as latents, once, kept beside the pixels; the same command again goes on where it stopped."""
    from functools import partial

    from padpolicy.data.latents import encode_store
    from padpolicy.data.store import Store
    from padpolicy.device import pick_device
    from padpolicy.encoders.image import ImageEncoder
    from padpolicy.progress import counted_bar

    device, known = pick_device(cfg.device), list(Store.open(cfg.path).cameras)
    if unknown := sorted(set(cfg.cameras) - set(known)):
        raise config.ConfigError(f"cameras: {cfg.path} has no {unknown[0]!r}; it has {', '.join(known)}.")
    cameras = cfg.cameras or known
    workers = cfg.workers if device == "cpu" else 0
    encoder = ImageEncoder.load(cfg.encoder, device)
    load = partial(ImageEncoder.load, cfg.encoder, "cpu")
    with counted_bar("frames") as advance:
        new = encode_store(
            cfg.path, encoder, cameras, cfg.image_size, lambda done, total: advance(done, total, ""), workers, load
        )
    print(f"Encoded: {new} new frames of {cfg.path} by {cfg.encoder} ({encoder.fingerprint}).")
    return 0


def deploy(cfg: config.DeployConfig) -> int:
    """A checkpoint, here or served, drives a robot; a live page shows it and stops it; everything is recorded."""
    from padpolicy.deploy import deploy

    results = deploy(cfg)
    print(f"{results['succeeded']} of {len(results['episodes'])} done. Recorded: {Path(cfg.out) / 'recording.zarr'}")
    return 0


def replay(cfg: config.ReplayConfig) -> int:
    """A recorded episode drives a robot again, under the same safety as a policy."""
    from padpolicy.deploy import replay

    replay(cfg)
    return 0


def label(cfg: config.LabelConfig) -> int:
    """Actions for the frames of PATH, read off them by a policy's mode `inverse`, marked as estimated."""
    from padpolicy.label import label
    from padpolicy.progress import counted_bar

    with counted_bar("episodes") as advance:
        out = label(cfg, lambda done, total: advance(done, total, ""))
    print(f"Labelled: {out}. Its actions are estimates. Next: padpolicy train … data.more=[{out}]")
    return 0


def info(arguments: list[str]) -> int:
    """padpolicy info PATH [--html FILE]

    What a dataset or a checkpoint holds. --html writes a page with pictures of a dataset.
    """
    from dataclasses import make_dataclass

    from padpolicy.settings import parse_options

    options: type[Any] = make_dataclass("Options", [("html", str, "")])
    given, paths = parse_options(options, arguments)
    path = _path("info", paths, "PATH [--html FILE]")
    from padpolicy.info import info

    print(info(path))
    if given.html:
        from padpolicy.info_page import write_page

        write_page(path, Path(given.html))
        print(f"Page: {given.html}")
    return 0


def doctor(arguments: list[str]) -> int:
    """padpolicy doctor [--json]

    What this machine has and what to do about what is missing. Exit code 0: usable; 1: not.
    """
    from padpolicy import doctor

    unknown = [a for a in arguments if a != "--json"]
    if unknown:
        raise config.ConfigError(f"padpolicy doctor takes only --json, got {unknown[0]!r}.")
    return doctor.report(as_json="--json" in arguments)


def bench(cfg: config.BenchConfig) -> int:
    """How fast this machine acts, steps environments and trains; `bench latency`: one plan stage by stage; `bench
    family`: families of networks, trained alike.
    """
    from padpolicy.bench.table import show, show_latency
    from padpolicy.progress import bar

    if cfg.what == "family":
        from padpolicy.bench.study import FAMILIES, study

        path = study(FAMILIES, Path(cfg.out), cfg.threads)
        print(f"{path.read_text()}\nTable: {path}")
        return 0
    if cfg.what == "latency":
        from padpolicy.bench.latency import latency

        with bar("measuring", cfg.plans) as advance:
            results = latency(cfg, advance)
        show_latency(results)
        return 0
    from padpolicy.bench.run import bench

    with bar("measuring", 5) as advance:
        results = bench(cfg, advance)
    show(results)
    return 0


VERBS: dict[str, Callable[[Any], int]] = {
    "quickstart": quickstart,
    "collect": collect,
    "train": train,
    "eval": evaluate,
    "serve": serve,
    "convert": convert,
    "encode": encode,
    "label": label,
    "deploy": deploy,
    "replay": replay,
    "validate": validate,
    "info": info,
    "doctor": doctor,
    "bench": bench,
}


def _brief(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {numbers[name]:.3g}" for name in ("loss", "samples_per_s") if name in numbers)


def _path(verb: str, arguments: list[str], usage: str) -> Path | str:
    """The one path, or URL of a store, that a verb was given."""
    from padpolicy.data.files import locate

    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise config.ConfigError(f"usage: padpolicy {verb} {usage}; got {' '.join(arguments) or 'nothing'}.")
    path = locate(arguments[0])
    if isinstance(path, Path) and not path.exists():
        raise FileNotFoundError(f"padpolicy {verb}: there is nothing at {path}.")
    return path


def _is_users(error: Exception) -> bool:
    """Whether an error says what a user gave wrong (checks at our borders raise these) rather than a bug of ours."""
    files = (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError, ConnectionError)
    if isinstance(error, (ValueError, FloatingPointError, *files)):  # FloatingPointError: training diverged
        return True
    return type(error).__module__ in ("gymnasium.error", "padpolicy.data.layout")


def _paragraph(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())

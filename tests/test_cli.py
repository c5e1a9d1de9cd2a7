"""The command: help, exit codes, one paragraph per mistake."""

from __future__ import annotations

import subprocess
import sys

import pytest

from padpolicy import __version__, cli, config


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_version_and_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"padpolicy {__version__}\n", "")
    for arguments in ([], ["--help"]):
        code, out, _ = run(capsys, *arguments)
        assert code == 0
        assert all(f"padpolicy {verb}" in out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.CONFIGURED)
def test_help_lists_every_setting_with_its_default(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    for key in config.keys(config.SCHEMAS[verb]()):
        assert f"  {key}=" in out


def test_help_takes_comments_from_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "train", "--help")
    assert "data.dt_s=0.1" in out
    assert "seconds between action steps" in out
    assert "  env=metaworld|metaworld10|tabletop" in out


@pytest.mark.parametrize("verb", ["validate", "info", "doctor"])
def test_help_of_the_other_verbs(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0
    assert out.startswith(f"padpolicy {verb}")


def test_cfg_prints_what_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "train", "experiment=tiny", "data.path=d", "out=x", "training.steps=3", "--cfg")
    assert code == 0
    assert "name: tiny\n" in out
    assert "  steps: 3\n" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fly"], "unknown command 'fly'. padpolicy knows: quickstart, collect"),
        (["train", "out=x", "data.path=d", "modle.width=3"], "Did you mean model.width"),
        (["train", "--steps", "3"], "no option --steps; settings are written key=value"),
        (["train", "out=x", "data.path=[d"], "cannot read 'data.path=[d'"),
        (["eval", "out=x", "checkpoint=tabletop", "env=moon"], "configs/env/ has: "),
        (["validate"], "usage: padpolicy validate PATH"),
        (["validate", "nowhere.zarr"], "nowhere.zarr"),
        (["info", "nowhere.zarr"], "nowhere.zarr"),
        (["doctor", "--loud"], "takes only --json"),
    ],
)
def test_a_users_mistake_is_one_paragraph_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADPOLICY_DEBUG", "1")
    with pytest.raises(config.ConfigError):
        cli.main(["fly"])


def test_a_bug_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(arguments: list[str]) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setitem(cli.VERBS, "doctor", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["doctor"])


def test_the_installed_command_answers_without_torch() -> None:
    code = "import sys; from padpolicy.cli import main; main(['train', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

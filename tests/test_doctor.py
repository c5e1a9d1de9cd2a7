"""The doctor: versions against ranges, and a report whatever breaks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from padpolicy import cli, doctor
from padpolicy.device import pick_device


@pytest.mark.parametrize(
    ("version", "relation", "bound", "holds"),
    [
        ("3.0.10", ">=", "3.0.5", True),
        ("3.0.4", ">=", "3.0.5", False),
        ("4.0", "<", "4", False),
        ("3.99.1", "<", "4", True),
        ("2.15.0+cu132", ">=", "2.7", True),
        ("2.7.0rc1", ">=", "2.7", True),
        ("1.10", ">", "1.9", True),
        ("3.1.1", "==", "3.1.1", True),
    ],
)
def test_versions_compare_by_number(version: str, relation: str, bound: str, holds: bool) -> None:
    assert doctor._holds(version, relation, bound) is holds


def test_requirements_are_read() -> None:
    assert doctor._parse("zarr<4,>=3.0.5") == ("zarr", [("<", "4"), (">=", "3.0.5")])
    assert doctor._parse("rich>=13.7; python_version >= '3.11'") == ("rich", [(">=", "13.7")])


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> Iterator[doctor.Line]:
        raise OSError("the disk is on fire")

    broken.__name__ = "_torch"
    monkeypatch.setattr(doctor, "_torch", broken)
    monkeypatch.setattr(doctor, "_probe", lambda code, **environment: (False, "not probed"))
    assert cli.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["usable"]
    found = {check["name"]: check for check in report["checks"]}
    assert found["torch"]["status"] == "fail"
    assert "on fire" in found["torch"]["found"]
    assert found["video"]["status"] == "ok"
    assert found["GL"]["status"] == "ok", "GL is never needed"
    assert all(check["advice"] for check in report["checks"] if check["status"] == "fail")
    assert cli.main(["doctor"]) == 1
    assert "cannot be used here" in capsys.readouterr().out


def test_an_apple_gpu_is_not_said_to_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert pick_device("auto") == "cpu"
    (gpu,) = [line for line in doctor._torch() if line.name == "gpu"]
    assert "not used" in gpu.found


def test_a_probe_brings_back_the_last_line() -> None:
    assert doctor._probe("print('one'); print('two')") == (True, "two")
    works, words = doctor._probe("import nowhere_to_be_found")
    assert not works
    assert "nowhere_to_be_found" in words

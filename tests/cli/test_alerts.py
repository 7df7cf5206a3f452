"""`esdmon alerts check`: a file that it accepts is one that `watch()` accepts."""

from pathlib import Path

import pytest

from esdmon.cli import main


def check(folder: Path, text: str) -> int:
    file = folder / "alerts.toml"
    file.write_text(text, encoding="utf-8")
    return main(["alerts", "check", str(file)])


@pytest.mark.parametrize("address", ["ftp://x/hush", "https://", "https://x:99999/hush", "${HOOK}"])
def test_an_address_that_cannot_be_posted_to_is_refused(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, f'[actions]\nwebhook = "{address}"\n') == 2
    error = capsys.readouterr().err
    assert "alerts.toml: actions.webhook: webhook" in error
    assert "hush" not in error


def test_a_variable_may_be_set_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = '[actions]\nwebhook = "$HOOK"\n'
    monkeypatch.delenv("HOOK", raising=False)
    assert check(tmp_path, text) == 0
    assert "alerts go to the webhook as well; the variable HOOK is not set here\n" in capsys.readouterr().out
    monkeypatch.setenv("HOOK", "https://localhost/x")
    assert check(tmp_path, text) == 0
    assert "alerts go to the webhook as well\n" in capsys.readouterr().out
    monkeypatch.setenv("HOOK", "localhost/x")
    assert check(tmp_path, text) == 2

"""Options that cannot be used are refused before anything is opened."""

from pathlib import Path

import pytest
import torch

import esdmon


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tags": "200"}, "max_tags= must be a number of series, 0 or more, or None for all; got '200'"),
        ({"max_tags": -1}, "max_tags= must be a number of series"),
        ({"max_tags": True}, "max_tags= must be a number of series"),
        ({"first_step": -1}, "first_step= must be a number of steps, 0 or more; got -1"),
        ({"first_step": 1.5}, "first_step= must be a number of steps"),
        ({"strict": "yes"}, "strict= must be True or False; got 'yes'"),
        ({"hook": 1}, "hook= must be True or False; got 1"),
        ({"on_alert": 5}, "on_alert= must be a function that takes an Alert; got 5"),
    ],
    ids=str,
)
def test_a_wrong_option_opens_nothing(
    options: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused before a folder is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(esdmon.InputError, match=message):
        esdmon.watch(torch.nn.Linear(64, 64), **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []

"""Errors: one sentence each, in families that a user can catch."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import esdmon
from esdmon.alerts.config import load_config
from esdmon.errors import EsdmonError, InputError, MissingExtraError, local_path, nearest


@pytest.mark.parametrize(
    ("error", "family"),
    [
        pytest.param(InputError, EsdmonError, id="input-is-esdmon"),
        pytest.param(InputError, ValueError, id="input-is-value"),
        pytest.param(MissingExtraError, InputError, id="extra-is-input"),
        pytest.param(MissingExtraError, ImportError, id="extra-is-import"),
    ],
)
def test_errors_can_be_caught_by_their_family(error: type[Exception], family: type[Exception]) -> None:
    """Who knows nothing of esdmon's errors catches them as Python's own."""
    assert issubclass(error, family)


def test_a_missing_extra_says_what_to_install() -> None:
    """The message names who needs which package, and holds a line for the shell."""
    error = MissingExtraError("the sink wandb", "wandb", "wandb")
    assert str(error) == 'the sink wandb needs the package wandb: python -m pip install "esdmon[wandb]"'


@pytest.mark.parametrize(
    ("got", "known", "hint"),
    [
        pytest.param("jsnl", ["console", "jsonl"], " Did you mean 'jsonl'?", id="one"),
        pytest.param("alpha_lo", ["alpha_low", "alpha_hat"], " Did you mean 'alpha_low' or 'alpha_hat'?", id="two"),
        pytest.param("xyz", ["console", "jsonl"], "", id="none-is-close"),
        pytest.param("jsonl", [], "", id="none-is-known"),
    ],
)
def test_nearest_names(got: str, known: list[str], hint: str) -> None:
    """A hint names what is close, the closest first, and is empty where nothing is."""
    assert nearest(got, known) == hint


@given(got=st.text(alphabet="abc"), known=st.lists(st.text(alphabet="abc", min_size=1)))
def test_a_hint_names_up_to_three_of_what_is_known(got: str, known: list[str]) -> None:
    """Nothing is suggested that there is not, and never a long list."""
    hint = nearest(got, iter(known))
    suggested = re.findall(r"'(\w+)'", hint)
    assert set(suggested) <= set(known)
    assert len(suggested) <= 3
    assert hint == (f" Did you mean {' or '.join(map(repr, suggested))}?" if suggested else "")


def test_a_home_folder_that_is_not_known_is_an_input_error() -> None:
    """As of a user without a name, whom some containers run as; and in each place where a path may begin with `~`."""
    for call in (lambda path: local_path("jsonl", path), esdmon.load, lambda path: load_config(path, {})):
        with pytest.raises(InputError, match=r"'~nobody-of-this-name/a': the home folder that ~ means is not known"):
            call("~nobody-of-this-name/a")


def test_a_deleted_working_directory_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InputError, match=r"jsonl:a cannot be written: the working directory was deleted. Change to"):
        local_path("jsonl:a", "a")
    with pytest.raises(InputError, match="the folder runs cannot be written: the working directory was deleted"):
        esdmon.watch(nn.Linear(64, 64))

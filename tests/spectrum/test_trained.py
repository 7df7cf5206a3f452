"""The classifier on spectra of trained layers, labelled by hand."""

import numpy as np
import pytest

from esdmon.spectrum import Phase
from tests.fixtures.trained import LABELS, SPECTRA, Labelled, confusion, is_held_back, load


@pytest.fixture(scope="module")
def labelled() -> list[Labelled]:
    return load()


def test_every_spectrum_has_a_label_and_a_reason(labelled: list[Labelled]) -> None:
    """And every label a spectrum; all six phases are there."""
    assert all(one.phase is not None and one.reason for one in labelled)
    assert {one.phase for one in labelled} == set(Phase) - {Phase.UNCLASSIFIED}
    assert LABELS.read_text().count("\nphase = ") == len(labelled)
    assert SPECTRA.stat().st_size < 1_000_000


def test_the_halves_share_no_recipe(labelled: list[Labelled]) -> None:
    """Seeds of one recipe, and layers of one run, stay together."""
    assert is_held_back("a_b2/fc1") == is_held_back("a_b2_seed-1/fc2")
    assert {one.held_back for one in labelled} == {True, False}


@pytest.mark.parametrize("held_back", [False, True], ids=["that set thresholds", "held back"])
def test_readings_agree_with_the_labels(held_back: bool, labelled: list[Labelled]) -> None:  # noqa: FBT001
    """In nine of ten at least."""
    _, share = confusion(one for one in labelled if one.held_back is held_back)
    assert share >= 0.9


def test_agreement_can_fail(labelled: list[Labelled]) -> None:
    """Labels that were dealt out at random agree in less than half."""
    order = np.random.default_rng(0).permutation(len(labelled))
    dealt = [
        Labelled(one.name, one.spectrum, one.held_back, labelled[other].phase)
        for one, other in zip(labelled, order, strict=True)
    ]
    assert confusion(dealt)[1] < 0.5

"""A slice of `tests.benchmarks.fuzz_checkpoints`: a damaged or hostile checkpoint ends in a table or in one line."""

import pickle
from pathlib import Path

import pytest

from tests.benchmarks import mutations
from tests.benchmarks.fuzz_checkpoints import Watch, judge, make_case, target_of, write_templates

WATCH = Watch()


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("templates")
    write_templates(folder)
    return folder


@pytest.mark.parametrize("which", mutations.WRITERS)
def test_damaged_checkpoints_raise_nothing_and_run_nothing(which: str, templates: Path, tmp_path: Path) -> None:
    """Ten cases of each format; the undamaged one can be read."""
    assert judge(target_of(templates / which), WATCH).status == 0
    first = list(mutations.WRITERS).index(which)
    for number in range(first, first + 10 * len(mutations.WRITERS), len(mutations.WRITERS)):
        folder = tmp_path / str(number)
        case = make_case(number, 1, templates, folder)
        assert judge(target_of(folder), WATCH).faults == (), (number, *case)


@pytest.mark.parametrize("which", mutations.HOSTILE)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_hostile_pickles(which: str, suffix: str, tmp_path: Path) -> None:
    """Each of them, as an archive and as a file of its own."""
    path = tmp_path / f"a{suffix}"
    mutations.write_hostile(path, which)
    outcome = judge(path, WATCH)
    assert (outcome.status, outcome.faults) == (2, ())


def test_the_payload_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickled as usual it runs, which the judge of the fuzzer sees."""
    monkeypatch.chdir(tmp_path)
    with WATCH.during() as seen:
        pickle.loads(mutations.hostile_content("payload"))  # noqa: S301 -- ours
    assert (tmp_path / mutations.CANARY).exists()
    assert any(event.startswith("pickle.find_class") for event in seen)
    assert any(event.startswith("open") for event in seen)


def test_a_case_is_the_same_for_the_same_number(templates: Path, tmp_path: Path) -> None:
    """So that it can be run again."""
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        made = [make_case(number, 0, templates, folder / str(number)) for number in range(12)]
        contents.append((made, [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()]))
    assert contents[0] == contents[1]

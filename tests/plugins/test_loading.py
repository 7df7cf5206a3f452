"""Plugins that are installed: found by their entry points, and named where they are broken."""

import importlib
import json
from importlib.metadata import Distribution
from pathlib import Path

import pytest

import esdmon
from esdmon import alerts
from esdmon.cli import main
from esdmon.plugins import Plugins
from esdmon.spectrum import measures
from tests.plugins.given import SCHEMES, AddsMeasure, Install, small_model, warnings

GOOD = """
    from esdmon import hookimpl
    from esdmon.spectrum import Measure

    @hookimpl
    def esdmon_register_measures():
        return [Measure("good", lambda spectrum: 1.0)]
"""
BAD = {
    "cannot-be-imported": "raise ImportError('no module named flux')",
    "is-no-python": "def",
    "raises-on-import": "1 / 0",
    "unknown-argument": """
        from esdmon import hookimpl

        @hookimpl
        def esdmon_on_alert(alert, colour):
            pass
    """,
    "misspelt-hook": """
        from esdmon import hookimpl

        @hookimpl
        def esdmon_register_measure():
            return []
    """,
    "raising-hook": """
        from esdmon import hookimpl

        @hookimpl
        def esdmon_register_measures():
            raise RuntimeError("no measures today")
    """,
    "returns-a-number": """
        from esdmon import hookimpl

        @hookimpl
        def esdmon_register_measures():
            return 5
    """,
    "returns-strings": """
        from esdmon import hookimpl

        @hookimpl
        def esdmon_register_alert_rules():
            return ["rank_collapse"]
    """,
    "sinks-are-no-mapping": """
        from esdmon import hookimpl

        @hookimpl
        def esdmon_register_sinks():
            return [print]
    """,
    "raises-while-iterated": """
        from esdmon import hookimpl

        @hookimpl
        def esdmon_register_measures():
            yield from ()
            raise RuntimeError("no measures today")
    """,
    "measure-is-no-measure": """
        from types import SimpleNamespace
        from esdmon import hookimpl

        @hookimpl
        def esdmon_register_measures():
            return [SimpleNamespace(name="half_a_measure")]
    """,
    "measure-name-taken": """
        from esdmon import hookimpl
        from esdmon.spectrum import Measure

        @hookimpl
        def esdmon_register_measures():
            return [Measure("alpha", lambda spectrum: 0.0)]
    """,
    "sink-scheme-taken": """
        from esdmon import hookimpl

        @hookimpl
        def esdmon_register_sinks():
            return {"jsonl": print}
    """,
}


def test_an_entry_point_is_found(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """An installed plugin needs no line in the script."""
    install("good", GOOD)
    report = esdmon.analyze(small_model())
    assert report["0"].measures["good"] == 1.0
    assert warnings(caplog) == []


@pytest.mark.parametrize("code", BAD.values(), ids=BAD.keys())
def test_a_bad_plugin_is_named_and_the_others_go_on(
    install: Install, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """One warning with the name of its entry point; nothing of it is used, and all else is there."""
    install("bad", code)
    install("good", GOOD)
    plugins = Plugins()
    (warning,) = warnings(caplog)
    assert warning.startswith("plugin 'bad'")
    assert plugins.measures.keys() == {measure.name for measure in measures.BUILT_IN_MEASURES} | {"good"}
    assert plugins.rules.keys() == {rule.name for rule in alerts.BUILT_IN_RULES}
    assert plugins.schemes == SCHEMES
    assert plugins.measures["alpha"] in measures.BUILT_IN_MEASURES


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("cannot-be-imported", "no module named flux"),
        ("unknown-argument", "colour"),
        ("misspelt-hook", "esdmon_register_measure"),
        ("raising-hook", "no measures today"),
        ("returns-a-number", "not iterable"),
        ("measure-name-taken", "the name 'alpha' is taken already"),
        ("sink-scheme-taken", "the name 'jsonl' is taken already"),
    ],
)
def test_the_warning_says_why(install: Install, caplog: pytest.LogCaptureFixture, case: str, why: str) -> None:
    """In one line, and without a dump of what else is registered."""
    install("bad", BAD[case])
    Plugins()
    (warning,) = warnings(caplog)
    assert why in warning
    assert "\n" not in warning
    assert "built-in" not in warning


def test_a_missing_module_is_a_warning_too(install: Install, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A distribution that was half removed has its metadata still."""
    install("bad", GOOD)
    (tmp_path / "esdmon_bad_0.py").unlink()
    importlib.invalidate_caches()
    Plugins()
    (warning,) = warnings(caplog)
    assert warning.startswith("plugin 'bad' (esdmon_bad_0) is not loaded: ModuleNotFoundError")


def test_an_entry_point_whose_name_is_taken_is_named(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """Two distributions that claim one name: one of them is used, and the log names the other."""
    install("same", GOOD)
    install("same", GOOD.replace("good", "other"))
    plugins = Plugins()
    assert len({"good", "other"} & plugins.measures.keys()) == 1
    (warning,) = warnings(caplog)
    assert "'same'" in warning


def test_a_plugin_object_whose_name_is_taken_leaves_the_first_alone(install: Install) -> None:
    """An entry point is not thrown out by an object whose class happens to bear its name."""
    install("AddsMeasure", GOOD)
    assert "good" in Plugins([AddsMeasure("mine", 1.0)]).measures


@pytest.mark.parametrize("disabled", ["bad", "other, bad", " bad ,", "*"])
def test_entry_points_can_be_disabled_by_name(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, disabled: str
) -> None:
    """What is disabled is not even imported, so it cannot do harm."""
    install("bad", "raise SystemExit('harm')")
    monkeypatch.setenv("ESDMON_DISABLE_PLUGINS", disabled)
    plugins = Plugins()
    assert ("tensorboard" in plugins.schemes) is (disabled != "*")
    assert warnings(caplog) == []


def test_what_is_given_is_not_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable is about entry points; an object in the script is there because somebody wrote it down."""
    monkeypatch.setenv("ESDMON_DISABLE_PLUGINS", "*")
    assert "mine" in Plugins([AddsMeasure("mine", 1.0)]).measures


def test_the_metadata_of_a_distribution_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold the README, and several entry points are of one distribution: ours."""
    whole, parsed = Distribution.metadata.fget, list[Distribution]()  # type: ignore[attr-defined]

    def counted(distribution: Distribution) -> object:
        parsed.append(distribution)
        return whole(distribution)

    monkeypatch.setattr(Distribution, "metadata", property(counted))
    listed = Plugins().listed
    assert len([each for each in listed if each.version == f"esdmon {esdmon.__version__}"]) > 2
    assert len(parsed) > 0
    assert len(parsed) == len({id(each) for each in parsed})


def test_a_rule_that_fails_in_a_replay_is_in_its_summary_and_status(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3, although another rule has fired, of which 1 says that all is known; with the errors of all runs."""
    install(
        "thin",
        """
        from esdmon import hookimpl
        from esdmon.alerts import AlertRule, Finding

        def breaks(history):
            raise ZeroDivisionError("in a rule")

        def fires(history):
            return [Finding("", "it holds")]

        @hookimpl
        def esdmon_register_alert_rules():
            return [AlertRule("breaks", breaks), AlertRule("holds", fires, checks=1, counts="reports")]
    """,
    )
    file = tmp_path / "two.jsonl"
    for _ in range(2):
        with esdmon.watch(small_model(), every=1, sinks=f"jsonl:{file}", alerts=None, plugins=[]) as monitor:
            for _ in range(2):
                monitor.step()
    counted = len(alerts.BUILT_IN_RULES) + 2
    assert main(["alerts", "replay", str(file)]) == 3
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith(
        f"{counted} rules: holds 2 rule breaks failed: 4 errors, the last at step 2: ZeroDivisionError: in a rule. "
        "Its alerts may be missing."
    )
    assert main(["alerts", "replay", str(file), "--json"]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["rule"] for line in lines] == ["holds", "holds"]
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["alerts", "replay", "--help"])
    assert "3 if a rule has failed" in " ".join(capsys.readouterr().out.split())

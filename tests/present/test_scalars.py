import logging
import math
import posixpath
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdmon.present.scalars import CHIEF, Namespace, portable, scalars, summary_tags, tag
from esdmon.records import Coverage, LayerReport, Report, Screened
from esdmon.spectrum import Phase
from esdmon.spectrum.measures import BUILT_IN_MEASURES

EVERYWHERE = re.compile(r"[A-Za-z0-9_\-.:/ ]+")

MEASURES = dict.fromkeys((*CHIEF, "xmin", "alpha_low", "trap"), 2.0)


def layer(name: str, step: int = 10, alpha: float = 2.0) -> LayerReport:
    measures = MEASURES | {"alpha": alpha}
    return LayerReport(name, "ok", step, N=64, M=64, phase=Phase.BULK_DECAY, measures=measures, update_ratio=0.01)


def report(names: list[str], max_tags: int | None, **changes: object) -> Report:
    layers = tuple(layer(name, alpha=2.0 + k) for k, name in enumerate(names))
    whole = Report(10, layers, Coverage(1, 1), 0.1, max_tags=max_tags)
    return replace(whole, **changes)  # type: ignore[arg-type]


def of_layers(numbers: dict[str, float]) -> set[str]:
    return {tag for tag in numbers if not tag.startswith("esdmon_summary/")}


@pytest.mark.parametrize(("max_tags", "each"), [(None, 11), (200, 11), (33, 11), (32, 8), (24, 8)])
def test_each_layer_has_as_much_as_there_is_room_for(max_tags: int | None, each: int) -> None:
    """There are all measures, or the chief ones, and the phase."""
    tags = of_layers(scalars(report(["a", "b", "c"], max_tags)))
    assert len(tags) == 3 * each
    assert {"esdmon_alpha/a", "esdmon_phase/c", "esdmon_update_ratio/c", "esdmon_lambda_max/b"} <= tags


def test_of_many_layers_there_are_kinds_and_a_few() -> None:
    """There are medians by kind, and single layers from the first to the last, up to the limit."""
    names = [f"h.{k}.{part}" for k in range(60) for part in ("attn/q", "mlp2.fc")]
    numbers = scalars(report(names, 200))
    tags = of_layers(numbers)
    assert 190 <= len(tags) <= 200
    assert {"esdmon_alpha/h.all.attn/q", "esdmon_phase/h.all.mlp2.fc"} <= tags
    assert numbers["esdmon_alpha/h.all.attn/q"] == 2.0 + 59
    assert {"esdmon_alpha/h.0.attn/q", "esdmon_alpha/h.59.mlp2.fc"} <= tags


def test_which_they_are_depends_on_the_model_alone() -> None:
    """The choice does not depend on what was read at a step, or so far."""
    names = [f"h.{k}" for k in range(80)]
    whole = report(names, 70)
    later = replace(whole, layers=tuple(replace(each, step=5) for each in whole.layers[:40]), waiting=tuple(names[40:]))
    first = replace(later, layers=(layer("h.0"), *later.layers[1:]))
    assert of_layers(scalars(first)) <= of_layers(scalars(whole))
    assert of_layers(scalars(later)) == {tag for tag in of_layers(scalars(whole)) if tag.endswith("/h.all")}


def test_numbers_that_are_undefined_and_layers_that_are_not_ok_are_left_out() -> None:
    """The summary is always present."""
    bad = replace(layer("bad"), status="nonfinite", reason="NaN", measures={})
    numbers = scalars(Report(10, (layer("good", alpha=math.nan), bad), Coverage(1, 1), 0.1))
    assert "esdmon_alpha/good" not in numbers
    assert "esdmon_xmin/good" in numbers
    assert not [tag for tag in numbers if tag.endswith("/bad")]
    assert numbers["esdmon_summary/layers_not_ok"] == 1


@pytest.mark.parametrize("max_tags", [None, 40, 22])
def test_every_tag_is_one_that_all_trackers_take(max_tags: int | None) -> None:
    """Names of layers, measures and alert rules may contain any character."""
    names = [f"h.{k}.größe*{k}+\t\"'(x)[0]" for k in range(5)]
    whole = report(names, max_tags, firing={"my rule %": 1})
    odd = tuple(replace(layer, measures={**layer.measures, "α²": 1.0}) for layer in whole.layers)
    tags = scalars(replace(whole, layers=odd))
    assert tags
    assert [tag for tag in tags if not EVERYWHERE.fullmatch(tag)] == []
    assert "esdmon_summary/layers_bulk-spikes" in tags


@pytest.mark.parametrize("name", ["h.0.mlp", "in_proj_weight/q", "encoder:0", "a b", "a-b", "a:zz:b", ":2b", "A_1"])
def test_a_name_that_all_trackers_take_stays_as_it_is(name: str) -> None:
    assert portable(name) == name


@given(st.sets(st.text(alphabet="a2b+*:_-ö./ ", max_size=6), max_size=30))
def test_no_two_layers_share_a_tag(names: set[str]) -> None:
    """Different names have different tags."""
    assert len({portable(name) for name in names}) == len(names)


@pytest.mark.parametrize("name", ["a//b", "../x", "/a", "a/", "./a", "a/../b", "a.", "a ", "x" * 300, "ö" * 300])
def test_a_tag_is_no_path_to_another_and_not_too_long(name: str) -> None:
    """MLflow refuses what a file system would resolve to another path, and tags of more than 250 characters."""
    for found in (tag("alpha", name), tag("equalised_soft_rank", name)):
        assert EVERYWHERE.fullmatch(found)
        assert posixpath.normpath(found) == found == found.strip(" ./")
        assert len(found) <= 245  # `esdmon12_` is longer
    assert portable(name) != portable(name[:-1])


def test_a_layer_that_is_called_as_its_kind_would_be_keeps_its_series() -> None:
    """The median then has a name of its own."""
    names = [f"h.{k}.fc" for k in range(40)] + ["h.all.fc"]
    numbers = scalars(report(names, 70))
    assert numbers["esdmon_alpha/h.all.fc"] == 2.0 + 40
    assert numbers["esdmon_alpha/h.:2a:.fc"] == 2.0 + 19.5


def test_kinds_of_many_layers_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work grows with the layers, and not with layers times kinds."""
    asked: list[str] = []
    substitute = re.sub

    def counted(pattern: str, new: str, name: str) -> str:
        asked.append(name)
        return substitute(pattern, new, name)

    monkeypatch.setattr(re, "sub", counted)
    names = [f"block{k % 50}.{k}" for k in range(300)]
    scalars(report(names, 400))
    assert sorted(asked) == sorted(names)


def test_the_summary_has_the_tags_that_scalars_have() -> None:
    """Hosts keep it elsewhere too, such as in Lightning's callback_metrics."""
    whole = report(["a"], None)
    tags = summary_tags(whole.summary)
    assert {name: tags[name] for name in tags if math.isfinite(tags[name])}.items() <= scalars(whole).items()
    assert tag("esd", "a+b") == "esdmon_esd/a:2b:b"


def test_two_sinks_of_one_place_do_not_share_tags(caplog: pytest.LogCaptureFixture) -> None:
    """A log line says so once; closing the first sink releases its number."""
    place, elsewhere = object(), object()
    first, second, alone = (Namespace(where, "the run") for where in (place, place, elsewhere))
    with caplog.at_level(logging.WARNING, "esdmon"):
        assert [names("esdmon_alpha/a") for names in (first, second, alone, second)] == [
            "esdmon_alpha/a",
            "esdmon2_alpha/a",
            "esdmon_alpha/a",
            "esdmon2_alpha/a",
        ]
    (line,) = caplog.messages
    assert "another monitor writes to the run already: tags of this one begin with esdmon2_" in line
    first.release()
    third = Namespace(place, "the run")
    assert third("esdmon/step") == "esdmon/step"
    assert second("esdmon/step") == "esdmon2/step"


def test_a_sink_that_writes_nothing_takes_no_name_from_others() -> None:
    place = object()
    silent, first = Namespace(place, "the run"), Namespace(place, "the run")
    assert first.rename({"esdmon_alpha/a": 1.0}) == {"esdmon_alpha/a": 1.0}
    silent.release()


def test_a_sink_that_was_never_closed_and_is_gone_holds_no_name() -> None:
    place = object()
    Namespace(place, "the run")("esdmon/step")
    assert Namespace(place, "the run")("esdmon/step") == "esdmon/step"


def test_of_the_default_measures_the_chief_ones_have_charts() -> None:
    """Those of a plugin, and those that a user has named, have charts too; None means all."""
    default = {measure.name: 2.0 for measure in BUILT_IN_MEASURES if not measure.needs}
    layer = LayerReport("a", "ok", 1, alpha_is_meaningful=True, measures=default | {"of_a_plugin": 1.0})
    report = Report(1, (layer,), Coverage(0, 0), max_tags=200)

    def charted(report: Report) -> set[str]:
        tags = [tag for tag in scalars(report, as_charts=True) if not tag.startswith("esdmon_summary/")]
        return {tag.removeprefix("esdmon_").removesuffix("/a") for tag in tags}

    assert charted(report) == {*CHIEF, "phase", "of_a_plugin"}
    assert charted(replace(report, max_tags=None)) == {*default, "phase", "of_a_plugin"}
    named = replace(layer, measures={"alpha": 2.0, "frobenius_norm": 3.0})
    assert charted(replace(report, layers=(named,))) == {"alpha", "frobenius_norm", "phase"}


def test_an_alpha_of_noise_has_another_chart() -> None:
    """Also in the medians of a kind, each over its own layers; other trackers have one series of alpha."""
    layers = tuple(
        LayerReport(f"h.{k}.fc", "ok", 1, alpha_is_meaningful=k < 10, measures={"alpha": float(k)}) for k in range(60)
    )
    report = Report(1, layers, Coverage(0, 0), max_tags=50)
    charts = scalars(report, as_charts=True)
    assert charts["esdmon_alpha/h.all.fc"] == 4.5
    assert charts["esdmon_alpha_noise/h.all.fc"] == 34.5
    assert charts["esdmon_alpha/h.0.fc"] == 0
    assert charts["esdmon_alpha_noise/h.59.fc"] == 59
    assert not {"esdmon_alpha_noise/h.0.fc", "esdmon_alpha/h.59.fc"} & charts.keys()
    assert len([tag for tag in charts if not tag.startswith("esdmon_summary/")]) <= 50
    assert scalars(report)["esdmon_alpha/h.all.fc"] == 29.5


def screened(name: str, residual: float = 1e-3, **changes: object) -> Screened:
    return replace(Screened(name, 10, 3.0, 1.5, residual, N=9), **changes)  # type: ignore[arg-type]


def test_norms_that_were_screened_are_in_the_series_of_readings() -> None:
    """Of layers that were not read at this step, also of those that never were; where they are close, and once."""
    old = replace(layer("old"), step=5)
    found = (screened("old"), screened("far", 0.02), screened("never"), screened("before", is_new=False))
    numbers = scalars(Report(10, (layer("new"), old), Coverage(1, 1), 0.1, waiting=("never",), screened=found))
    chosen = {tag for tag in of_layers(numbers) if not tag.endswith("/new")}
    assert chosen == {"esdmon_lambda_max/old", "esdmon_stable_rank/old"}
    assert (numbers["esdmon_lambda_max/old"], numbers["esdmon_stable_rank/old"]) == (0.25, 4.0)
    assert numbers["esdmon_summary/layers_screened"] == 3


@pytest.mark.parametrize("max_tags", [200, 24, 16])
def test_norms_that_were_screened_add_no_series(max_tags: int) -> None:
    """With a limit, nothing has a tag that it would not have when it is read; and medians are of the newest norms."""
    names = [f"h.{k}" for k in range(5)]
    whole = report(names, max_tags)
    later = replace(whole, layers=tuple(replace(each, step=5) for each in whole.layers))
    later = replace(later, screened=tuple(map(screened, names)))
    assert of_layers(scalars(later)) <= of_layers(scalars(whole))
    assert scalars(later).get("esdmon_stable_rank/h.all", 4.0) == 4.0
    assert len([tag for tag in scalars(later) if "stable_rank/" in tag]) == {200: 5, 24: 3, 16: 2}[max_tags]

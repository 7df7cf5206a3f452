"""Tables: they fit a terminal whatever the names."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esdmon.records import table
from esdmon.records.table import WIDTH, format_table, shorten, shorten_all, without_common_prefix

CELLS = st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=12)


@given(st.lists(st.tuples(st.text(max_size=200), CELLS, CELLS, CELLS), max_size=5))
def test_no_name_makes_a_table_wider_than_a_terminal(rows: list[tuple[str, str, str, str]]) -> None:
    """Names are shortened until every line has at most 80 characters."""
    text = format_table(["layer", "phase", "alpha", "spikes"], rows, left=(0, 1))
    assert max(map(len, text.split("\n"))) <= WIDTH == 80


@given(text=st.text(), width=st.integers(1, 100))
@example(text="abc", width=1)
def test_shorten_keeps_the_width(text: str, width: int) -> None:
    """A text that fits is unchanged, and another has exactly the width."""
    short = shorten(text, width)
    assert short == text if len(text) <= width else len(short) == width


@given(text=st.text(alphabet="abc.", min_size=13), width=st.integers(2, 12))
def test_shorten_keeps_both_ends(text: str, width: int) -> None:
    """The text's start and end surround the ellipsis, and the end is at least as long."""
    head, _, tail = shorten(text, width).partition("…")
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(tail) >= len(head)


@given(st.lists(st.text(max_size=40), max_size=6), st.integers(1, 30))
def test_names_that_are_shortened_together_keep_the_width(names: list[str], width: int) -> None:
    """One that fits is unchanged."""
    for name, short in zip(names, shorten_all(names, width), strict=True):
        assert short == name if len(name) <= width else len(short) == width


def test_names_that_differ_in_the_middle_differ_when_they_are_short() -> None:
    """As those of a transformer's layers, beside a layer that has no common prefix with them."""
    names = [f"model.encoder.layer.{k}.attention.self.{each}" for k in range(12) for each in ("query", "key")]
    names += [
        "model.pooler.dense",
        "model.bidirectional/forward_lstm/kernel",
        "model.bidirectional/backward_lstm/kernel",
    ]
    short = shorten_all(names, 22)
    assert len(set(short)) == len(names)
    assert short[2] == "…1…ttention.self.query"
    table = format_table(["layer", "N × M", "phase"], [[name, "64 × 64", "random-like"] for name in names], width=50)
    assert len(set(table.split("\n"))) == len(names) + 1


def test_names_that_are_kept_apart_from_some_differ_from_all() -> None:
    """In a U-Net blocks down, up and in the middle have the same names but for the beginning, and end alike."""
    kinds = [f"{way}_blocks.{k}" for way in ("down", "up") for k in range(2)]
    names = [f"{kind}.resnets.{k}.conv{j}" for kind in (*kinds, "mid_block") for k in range(2) for j in (1, 2)]
    names += [
        f"{kind}.attentions.{k}.transformer_blocks.0.attn{j}.to_{each}"
        for kind in (*kinds, "mid_block")
        for k in range(2)
        for j in (1, 2)
        for each in "qk"
    ]
    short = dict(zip(names, shorten_all(names, 19), strict=True))
    assert len(set(short.values())) == len(names)
    assert short["up_blocks.1.resnets.0.conv1"] == "…up_b.1.0…s.0.conv1"
    assert short["down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q"] == "…dow.1.0.attn2…to_q"


def test_names_that_differ_within_a_long_part_differ_when_they_are_short() -> None:
    """As the gates of a bidirectional LSTM do."""
    names = [
        f"encoder.weight_{kind}_l{k}{way}/{gate}"
        for k in range(2)
        for way in ("", "_reverse")
        for kind in ("ih", "hh")
        for gate in "ifgo"
    ]
    short = dict(zip(names, shorten_all(names, 22), strict=True))
    assert len(set(short.values())) == len(names)
    assert short["encoder.weight_hh_l0_reverse/i"] == "…eight_hh_l0_reverse/i"
    middles = [f"model.self_attention_of_the_{each}.projection.output" for each in ("encoder", "decoder")]
    assert shorten_all(middles, 22) == ["…encoder…ection.output", "…decoder…ection.output"]


def test_names_without_their_common_prefix_are_shortened_with_one_mark_at_the_start() -> None:
    """The adapters of LoRA end alike, and differ in parts that begin with the mark of the prefix left out."""
    names = [f"transformer.h.{k}.attn.{each}/lora.default" for k in range(2) for each in ("c_attn", "c_proj")]
    short = shorten_all(without_common_prefix(names), 20)
    assert short == ["…0.c_attn…ra.default", "…0.c_proj…ra.default", "…1.c_attn…ra.default", "…1.c_proj…ra.default"]


def test_columns_are_aligned() -> None:
    """Numbers are aligned to the right and words to the left, and so is the header."""
    table = format_table(["layer", "phase", "alpha"], [["fc1", "bulk", "2.5"], ["fc10", "heavy", "12.25"]], left=(0, 1))
    assert table.split("\n") == [
        "layer  phase  alpha",
        "fc1    bulk     2.5",
        "fc10   heavy  12.25",
    ]


def test_a_table_without_rows_is_its_header() -> None:
    """A table without rows is valid."""
    assert format_table(["layer", "alpha"], []) == "layer  alpha"


def test_lines_have_no_trailing_blanks() -> None:
    """A last column that is empty leaves nothing behind."""
    assert format_table(["layer", "phase"], [["fc1", ""]], left=(0, 1)).split("\n")[1] == "fc1"


def test_rows_have_as_many_cells_as_the_header() -> None:
    """A row that is too short is a mistake of the caller, and raises."""
    with pytest.raises(ValueError, match="shorter"):
        format_table(["layer", "alpha"], [["fc1"]])


def test_names_are_compared_once_for_each_of_their_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for each name: the table of 3200 experts took 1.7 s."""
    compared: list[int] = []
    shared = table._shared

    def counted(several: Sequence[str]) -> list[str]:
        compared.append(len(several))
        return shared(several)

    monkeypatch.setattr(table, "_shared", counted)
    names = [
        f"layers.{number // 10}.experts.expert_{number % 10}.down_projection.weight_matrix" for number in range(60)
    ]
    short = shorten_all(names, 30)
    assert len(set(short)) == len(names)
    assert compared == [60, 60]

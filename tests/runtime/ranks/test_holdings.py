"""The tables of ranks are joined to one list of matrices, each with who holds its parts."""

from esdmon.runtime.ranks.holdings import Holder, Listed, Part, Table, join
from esdmon.schedule.fragments import Fragment, covers

SHAPE = (4, 3)


def part(start: int, rows: int, *, content: str = "", group: int = 0) -> Part:
    fragment = Fragment((start, 0), (rows, 3)) if rows else None
    return Part(SHAPE, 4, fragment, content or f"rows {start}", group)


def table(rank: int, *parts: Part | None, name: str = "w") -> Table:
    """A rank with one sharded matrix for each part."""
    names = [f"{name}{number}" for number in range(len(parts))]
    listed = {each: Listed(1.0, (f"{each}.weight",), "", 12) for each in names}
    held = {f"{each}.weight": part for each, part in zip(names, parts, strict=True) if part is not None}
    return Table(rank, f"host{rank} 1", listed, held)


def whole(rank: int, **contents: str) -> Table:
    return Table(rank, "", {name: Listed(1.0, (), content, 12) for name, content in contents.items()}, {})


def test_a_table_survives_its_json() -> None:
    """With parts that are empty, and intervals."""
    interval = Part(SHAPE, 2, Fragment.interval(3, 7), "x", 1)
    before = Table(
        1, "host 1", {"w": Listed(0.5, ("w.weight",), "", 12)}, {"w.weight": interval}, (("b", 3, "vectors"),)
    )
    assert Table.from_json(before.to_json()) == before
    empty = table(0, part(0, 0))
    assert Table.from_json(empty.to_json()) == empty


def test_parts_of_two_ranks_make_a_matrix() -> None:
    """Each with its holder; who lists the matrix can put it together."""
    joined = join({0: table(0, part(0, 3)), 1: table(1, part(3, 1))})
    assert joined.matrices["w0"].reason == ""
    assert joined.matrices["w0"].readers == (0, 1)
    holders = (Holder(0, Fragment((0, 0), (3, 3)), "host0 1"), Holder(1, Fragment((3, 0), (1, 3)), "host1 1"))
    assert joined.holders["w0.weight"] == holders
    assert joined.bytes_of["w0.weight"] == 48
    assert joined.copies() == {0: {"w0.weight": ()}, 1: {"w0.weight": ()}}
    assert (joined.coverage.watched, joined.coverage.total) == (12, 12)


def test_a_part_that_is_missing_is_counted() -> None:
    """Of a rank that does not watch, and of one that is paused."""
    alone = join({0: table(0, part(0, 3))})
    assert alone.matrices["w0"].reason == "9 of 12 elements are held by ranks that watch"
    assert (alone.coverage.watched, alone.coverage.total) == (0, 12)
    paused = join({0: table(0, part(0, 3)), 1: table(1, part(3, 1))}, paused={1})
    assert paused.matrices["w0"].reason == "9 of 12 elements are held by ranks that watch and answer"
    assert paused.matrices["w0"].readers == (0,)


def test_replicas_share_the_work_and_stand_in_for_each_other() -> None:
    """Equal parts with equal content: one holder each, spread over those that have them."""
    tables = {rank: table(rank, part(rank % 2 * 2, 2), part(rank % 2 * 2, 2)) for rank in range(4)}
    joined = join(tables)
    assert {holder.rank for holders in joined.holders.values() for holder in holders} == {0, 1, 2, 3}
    assert joined.copies()[0] == {"w0.weight": (2,)}
    assert joined.copies()[3] == {"w1.weight": (1,)}
    without = join(tables, paused={0})
    assert all(entry.reason == "" for entry in without.matrices.values())
    assert 0 not in {holder.rank for holders in without.holders.values() for holder in holders}


def test_stages_that_are_sharded_under_equal_names() -> None:
    """Two groups of two ranks: another weight each."""
    joined = join(
        {rank: table(rank, part(rank % 2 * 2, 2, content=f"{rank}", group=rank // 2 * 2)) for rank in range(4)}
    )
    assert {name: entry.readers for name, entry in joined.matrices.items()} == {"w0@0": (0, 1), "w0@2": (2, 3)}
    assert joined.names[3] == {"w0": "w0@2", "w0.weight": "w0.weight@2"}
    assert joined.local_names(3) == {"w0@2": "w0", "w0.weight@2": "w0.weight"}
    assert [holder.rank for holder in joined.holders["w0.weight@2"]] == [2, 3]


def test_replicas_that_have_drifted_apart_are_not_read() -> None:
    """One group, the same part, other content: nothing says which is right."""
    joined = join({rank: table(rank, part(0, 4, content=f"{rank}")) for rank in range(2)})
    assert joined.matrices["w0"].reason == "ranks hold different values of the same part of it"


def test_whole_weights_of_one_name() -> None:
    """Equal ones are one matrix, others are named after the first rank that holds them."""
    joined = join({0: whole(0, a="x", b="0"), 1: whole(1, a="x", b="1"), 2: whole(2, a="x", b="1")})
    readers = {name: entry.readers for name, entry in joined.matrices.items()}
    assert readers == {"a": (0, 1, 2), "b@0": (0,), "b@1": (1, 2)}


def test_the_order_is_that_of_the_models() -> None:
    """Pipeline stages follow one another; the experts of each rank stand beside those of the others."""
    first = {"embed": "x", "layer0": "x", "experts": "0", "layer1": "x"}
    second = {"embed": "x", "layer0": "x", "experts": "1", "layer1": "x"}
    third = {"layer9": "x", "layer10": "x", "head": "x"}
    joined = join({2: whole(2, **third), 1: whole(1, **second), 0: whole(0, **first)})
    assert list(joined.matrices) == [
        *("embed", "layer0", "experts@0", "experts@1", "layer1"),
        *("layer9", "layer10", "head"),
    ]


def test_boxes_and_intervals_do_not_make_up_one_parameter() -> None:
    """Their elements may be as many by chance."""
    assert not covers([Fragment.interval(0, 6), Fragment((2, 0), (2, 3))], SHAPE)
    assert covers([Fragment.interval(0, 6), Fragment.interval(6, 12)], SHAPE)


def test_a_rank_that_has_left() -> None:
    """What others hold too is read by them; what it held alone stays in the list, with the reason."""
    holdings = join({0: whole(0, shared="a"), 1: whole(1, shared="a", own="b")}, left={1})
    assert holdings.matrices["shared"].readers == (0,)
    assert holdings.matrices["shared"].reason == ""
    assert holdings.matrices["own"].reason == "rank 1, which holds it, has closed its monitor"

"""A filter lets through exactly the rows that a look at every item lets through."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.postings import MAX_TEXT_CHARS, Postings, PostingsWriter
from index.selection import Selection

names = st.sampled_from(["a", "b", "ä/\n", "c\x00", ""])
values = st.one_of(st.none(), st.sampled_from(["1", "true", "x", ""]))
numbers = st.one_of(st.none(), st.sampled_from([0, 1, 2, -3]))
floats = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.5, float("nan"), float("inf")]))
item = st.fixed_dictionaries(
    {
        "categories": st.one_of(st.none(), st.lists(st.one_of(st.none(), names), max_size=3)),
        "text": values,
        "number": numbers,
        "float": floats,
        "flag": st.one_of(st.none(), st.booleans()),
    }
)
asked = st.fixed_dictionaries(
    {
        "categories_any": st.lists(names, max_size=2),
        "categories_all": st.lists(names, max_size=2),
        "categories_none": st.lists(names, max_size=2),
        "attributes": st.dictionaries(
            st.sampled_from(["text", "number", "float", "flag", "unknown"]),
            st.lists(st.sampled_from(["1", "true", "x", "", 0, 1, 2, -3, 1.0, 2.5, True, False]), max_size=3),
            max_size=2,
        ),
    }
)
TYPES = {"text": pa.string(), "number": pa.int64(), "float": pa.float64(), "flag": pa.bool_()}


def write(folder: Path, items: list[dict], *, batch: int = 4) -> Postings:
    writer = PostingsWriter()
    for start in range(0, len(items), batch):
        some = items[start : start + batch]
        writer.add_categories(pa.array([one["categories"] for one in some], pa.list_(pa.string())), first_row=start)
        for name, dtype in TYPES.items():
            writer.add_attribute(name, pa.array([one[name] for one in some], dtype), first_row=start)
    writer.write(folder)
    return Postings(folder, num_items=len(items))


def same(left, right) -> bool:
    """Equal as JSON values are: 1 is 1.0, but neither true nor "1"."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def passes(one: dict, wanted: dict) -> bool:
    categories = set(one["categories"] or [])
    if wanted["categories_any"] and not categories & set(wanted["categories_any"]):
        return False
    if not set(wanted["categories_all"]) <= categories or categories & set(wanted["categories_none"]):
        return False
    return all(
        any(one.get(name) is not None and same(one[name], value) for value in options)
        for name, options in wanted["attributes"].items()
    )


@settings(max_examples=60, deadline=None)
@given(items=st.lists(item, min_size=1, max_size=12), wanted=st.lists(asked, min_size=1, max_size=4))
def test_a_selection_is_what_a_look_at_every_item_gives(items, wanted):
    with tempfile.TemporaryDirectory() as folder:
        postings = write(Path(folder), items)
        for one in wanted:
            expected = [passes(entry, one) for entry in items]
            selection = postings.select(**one)
            assert selection.mask_N.tolist() == expected
            assert selection.rows.tolist() == np.flatnonzero(expected).tolist()
            assert selection.count == sum(expected)
            assert postings.select(**one) is selection
            assert postings.known(selection.mask_N) is selection


def test_a_selection_can_not_be_changed_and_leaving_rows_out_makes_another():
    mask = np.array([True, True, False, True])
    selection = Selection(mask)
    with pytest.raises(ValueError, match="read-only"):
        selection.mask_N[0] = False
    assert selection.without([0, 2]).rows.tolist() == [1, 3]
    assert selection.rows.tolist() == [0, 1, 3]
    mask[1] = False  # the caller's array is still the caller's


def test_the_order_in_which_a_filter_is_written_does_not_matter(tmp_path):
    items = [{"categories": ["a", "b"], "text": "x", "number": 1, "float": 1.0, "flag": True}] * 3
    postings = write(tmp_path, items)
    one = postings.select(categories_any=["a", "b"], attributes={"text": ["x", "1"], "number": [1]})
    other = postings.select(categories_any=["b", "a", "a"], attributes={"number": [1.0], "text": ["1", "x"]})
    assert one is other


def test_the_memory_of_selections_is_bounded_and_forgets_the_oldest(tmp_path, monkeypatch):
    monkeypatch.setattr("index.postings._CACHE_BYTES", 0)
    items = [{"categories": None, "text": None, "number": row, "float": None, "flag": None} for row in range(40)]
    postings = write(tmp_path, items)
    first = postings.select(attributes={"number": [0]})
    for row in range(40):
        assert postings.select(attributes={"number": [row]}).rows.tolist() == [row]
        assert postings.select(attributes={"number": [0]}) is first  # used again and again, so kept
    assert len(postings._cache) == 8
    assert len(postings._by_mask) == 8


def test_long_texts_are_no_values_to_filter_by(tmp_path):
    long = "x" * (MAX_TEXT_CHARS + 1)
    items = [{"categories": None, "text": long, "number": None, "float": None, "flag": None}]
    assert write(tmp_path, items).select(attributes={"text": [long]}).count == 0


def test_a_catalogue_without_anything_to_filter_by_has_no_postings(tmp_path):
    PostingsWriter().write(tmp_path)
    postings = Postings(tmp_path, num_items=3)
    assert postings.select().count == 3
    assert postings.select(categories_none=["a"]).count == 3
    assert postings.select(categories_any=["a"]).count == 0

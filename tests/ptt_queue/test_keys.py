"""The keys of the store: order is what everything rests on."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptt_queue import keys
from ptt_queue.types import State

lanes = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=100)
parts = st.tuples(
    st.integers(0, keys.MAX_STAGE),
    st.sampled_from(State),
    lanes,
    st.sampled_from(keys.CLASSES),
    st.integers(0, keys.MAX_DUE),
    st.binary(min_size=12, max_size=12),
    st.integers(0, keys.MAX_NUMBER),
)


def sortable(p):
    """The order of keys: lanes by their bytes, all else by number."""
    return (p[0], p[1], p[2].encode(), *p[3:])


@given(parts)
def test_index_key_round_trip(p):
    key = keys.index_key(*p)
    assert keys.split_index_key(key) == p
    assert len(key) <= 511
    assert keys.due_of_key(key) == p[4]
    assert keys.split_record_key(key[-keys.TASK_BYTES :]) == (p[5], p[6])


@given(parts, parts)
def test_keys_sort_as_their_parts(a, b):
    assert (keys.index_key(*a) < keys.index_key(*b)) == (sortable(a) < sortable(b))


@given(parts, parts)
def test_seek_past_a_lane_skips_it_and_nothing_else(a, b):
    first, other = keys.index_key(*a), keys.index_key(*b)
    prefix = keys.lane_of_key(first)
    assert prefix == keys.lane_prefix(*a[:3])
    past = keys.past_lane(prefix)
    assert first < past
    if other.startswith(prefix):
        assert other < past
    else:
        assert (other < first) == (other < past) or other < prefix


@pytest.mark.parametrize("lane", ["a\0b", "\0", "x" * 401, "ü" * 201, "\ud800"])
def test_lanes_that_no_key_can_hold(lane):
    with pytest.raises(ValueError):
        keys.lane_prefix(1, 0, lane)


def test_longest_lane_fits():
    assert len(keys.index_key(2, 0, "x" * 400, 2, keys.MAX_DUE, b"i" * 12, keys.MAX_NUMBER)) <= 511


@pytest.mark.parametrize(("due", "number"), [(1 << 48, 1), (-1, 1), (0, 1 << 32), (0, -1)])
def test_numbers_out_of_range(due, number):
    with pytest.raises(struct.error):
        keys.index_key(1, 0, "a", 1, due, b"i" * 12, number)

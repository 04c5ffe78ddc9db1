"""Windows: whose flows they hold, and that pieces of a stream do not change them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domains.security.windows import HostWindows, Windows, previous_rows


def by_hand(keys, row, window, memory):
    """Follow the flows of a host back, one by one."""
    found = [row]
    while len(found) < window:
        last = found[0]
        before = [r for r in range(last) if keys[r] == keys[last] and last - r < memory]
        found.insert(0, before[-1] if before else last)
    return found


def test_windows_of_a_file_end_at_their_flow_and_repeat_the_first():
    windows = Windows([np.arange(10)], 4)
    assert windows.at(np.array([9, 1]))[0].tolist() == [[6, 7, 8, 9], [0, 0, 0, 1]]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 5), st.integers(2, 9))
def test_windows_of_hosts(hosts, window, memory):
    keys = np.array(hosts, np.uint64)
    windows = Windows([np.arange(len(keys))], window, previous_rows(keys, len(keys), memory))
    found = windows.at(np.arange(len(keys)))[0].tolist()
    assert found == [by_hand(hosts, row, window, memory) for row in range(len(keys))]


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=60),
    st.lists(st.integers(1, 12), min_size=1, max_size=10),
    st.integers(1, 5),
    st.integers(2, 20),
    st.booleans(),
)
def test_a_stream_gives_the_windows_of_the_whole(hosts, cuts, window, memory, of_file):
    keys = None if of_file else np.array(hosts, np.uint64)
    rows = len(hosts)
    values = np.arange(rows * 2).reshape(rows, 2)
    whole = Windows([values], window, previous_rows(keys, rows, memory)).at(np.arange(rows))[0]
    stream, found, start = HostWindows(window, memory), [], 0
    while start < rows:
        size = cuts[len(found) % len(cuts)]
        piece = slice(start, start + size)
        part = values[piece]
        windows = stream.add(None if keys is None else keys[piece], part)
        found.append(windows.at(np.arange(len(part)))[0])
        start += size
    assert np.array_equal(np.concatenate(found), whole)


def test_memory_of_hosts_is_bounded():
    stream = HostWindows(3, memory=50)
    for start in range(0, 1000, 25):
        keys = np.arange(start, start + 25, dtype=np.uint64)
        stream.add(keys, np.zeros((25, 2)))
        assert stream.hosts <= 50


@pytest.mark.parametrize("window", [1, 3])
def test_an_empty_piece_changes_nothing(window):
    stream = HostWindows(window)
    stream.add(None, np.array([1.0, 2.0]))
    stream.add(None, np.zeros(0))
    assert stream.add(None, np.array([3.0])).at(np.array([0]))[0][0].tolist() == [1, 2, 3][-window:]

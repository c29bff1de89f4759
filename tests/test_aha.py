"""The 17 segments are those of Cerqueira et al., Circulation 2002;105:539."""

import itertools

import numpy as np
import pytest

from nnunet_lgesynth.anatomy.aha import (
    NAMES,
    SEGMENTS,
    SPANS,
    TERRITORIES,
    connected,
    neighbours,
    number_of,
    segment_map,
)

PUBLISHED = dict(enumerate((
    "basal anterior", "basal anteroseptal", "basal inferoseptal", "basal inferior",
    "basal inferolateral", "basal anterolateral", "mid anterior", "mid anteroseptal",
    "mid inferoseptal", "mid inferior", "mid inferolateral", "mid anterolateral",
    "apical anterior", "apical septal", "apical inferior", "apical lateral", "apex"), 1))
# The borders on the bull's eye, each once: around the rings, then from ring to ring.
BORDERS = {
    (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (1, 6), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12),
    (7, 12), (13, 14), (14, 15), (15, 16), (13, 16),
    (1, 7), (2, 8), (3, 9), (4, 10), (5, 11), (6, 12),
    (7, 13), (8, 13), (12, 13), (8, 14), (9, 14), (9, 15), (10, 15), (11, 15), (11, 16), (12, 16),
    (13, 17), (14, 17), (15, 17), (16, 17)}


def test_names_have_the_published_numbers():
    assert NAMES == PUBLISHED and SEGMENTS == tuple(PUBLISHED)
    assert all(number_of(name) == n for n, name in PUBLISHED.items())
    assert number_of("mid septal") is None


@pytest.mark.parametrize("first", [1, 7, 13])
def test_spans_close_the_circle_without_overlap(first):
    ring = [SPANS[n] for n in range(first, 17 if first == 13 else first + 6)]
    starts = sorted(start % (2 * np.pi) for start, _ in ring)
    ends = sorted(end % (2 * np.pi) for _, end in ring)
    assert starts == pytest.approx(ends)
    assert {round(np.degrees(end - start)) for start, end in ring} == {360 // len(ring)}


@pytest.mark.parametrize("degrees, segments", [      # anterior lies 30 degrees before the insertion
    (330, (1, 7, 13)), (60 - 1, (2, 8, 14)), (60 + 1, (3, 9, 14)), (150, (4, 10, 15)),
    (240 - 1, (5, 11, 16)), (240 + 1, (6, 12, 16))])
def test_walls_lie_where_the_right_ventricle_says(degrees, segments):
    angle = np.full((4, 1, 1), np.deg2rad(degrees))
    found = segment_map(angle, np.array([2, 1, 0, 0]), np.array([False, False, False, True]))
    assert tuple(found.ravel()) == (*segments, 17)


def test_the_map_follows_the_spans_and_is_empty_where_no_angle_is():
    angle = np.deg2rad(np.arange(360) + 0.5)[None, None].repeat(3, axis=0)
    found = segment_map(angle, np.array([0, 1, 2]), np.zeros(3, bool))
    for n in SEGMENTS[:16]:
        first, last = SPANS[n]
        inside = np.mod(angle - first, 2 * np.pi) < last - first
        level = 2 - (n - 1) // 6
        assert np.array_equal(found[level] == n, inside[level])
    assert not segment_map(np.full((1, 2, 2), np.nan), np.array([1]), np.zeros(1, bool)).any()


def test_neighbours_are_those_of_the_bulls_eye():
    assert {(a, b) for a in SEGMENTS for b in neighbours(a) if a < b} == BORDERS


def test_neighbours_are_mutual():
    for a in SEGMENTS:
        assert a not in neighbours(a) and all(a in neighbours(b) for b in neighbours(a))


@pytest.mark.parametrize("segments, expected", [
    ((), True), ((5,), True), ((1, 6), True), ((1, 3), False), ((1, 2, 3), True),
    ((13, 15), False), ((13, 15, 17), True), ((1, 13), False), ((1, 7, 13), True), ((2, 17), False),
    (SEGMENTS, True), (iter((8, 14)), True)])
def test_connected_segments_can_be_walked(segments, expected):
    assert connected(segments) is expected


def test_connected_agrees_with_the_borders_on_every_triple():
    for triple in itertools.combinations(SEGMENTS, 3):
        borders = sum(pair in BORDERS for pair in itertools.combinations(triple, 2))
        assert connected(triple) == (borders >= 2)


def test_territories_part_the_segments():
    assert sorted(s for segments in TERRITORIES.values() for s in segments) == list(SEGMENTS)
    assert all(connected(segments) for segments in TERRITORIES.values())
    assert TERRITORIES["RCA"] == (3, 4, 9, 10, 15) and TERRITORIES["LCx"] == (5, 6, 11, 12, 16)

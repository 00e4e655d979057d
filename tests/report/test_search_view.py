"""Ranked lists, confusions and the table by identity, against brute force."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import brute_force, people

from metricid.evaluation import PROTOCOLS
from metricid.report.search_view import (
    MOST_QUERIES,
    by_identity,
    confusions,
    measure,
    plan_search,
    ranked_lists,
)


def reid_columns(names, cameras):
    split = np.array(["query" if i % 4 == 0 else "gallery" for i in range(len(names))], dtype=object)
    return {"identity": names, "camera": cameras, "split": split}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000), noise=st.floats(0.3, 4.0), with_cameras=st.booleans(), doubles=st.booleans()
)
def test_lists_equal_a_search_by_brute_force(seed, noise, with_cameras, doubles):
    vectors, names, cameras = people(np.random.default_rng(seed), noise=noise)
    if doubles:
        vectors[10:20] = vectors[40:50]  # equal embeddings of other people
    protocols = ["reid"] if with_cameras else ["identification"]
    search = plan_search(vectors, reid_columns(names, cameras), protocols)
    assert search.leave_one_out is not with_cameras
    measured = measure(search)
    lists = ranked_lists(search, measured, count=5, top=7, seed=0)
    assert Counter(entry.group for entry in lists) == {"best": 5, "worst": 5, "random": 5}
    for entry in lists:
        order, ranks, precision = brute_force(search, entry.row)
        assert entry.average_precision == pytest.approx(precision)
        assert entry.first_rank == next(
            r for row, r in zip(order, ranks, strict=True) if r and names[row] == names[entry.row]
        )
        shown = [item.row for item in entry.items]
        if not doubles:
            assert shown == order[: len(shown)]
        assert [item.rank for item in entry.items] == ranks[: len(shown)]
        assert max(item.rank or 0 for item in entry.items) == 7 or len(shown) == 14
        for item in [*entry.items, *([entry.first_right] if entry.first_right else [])]:
            a, b = vectors[entry.row].astype(float), vectors[item.row].astype(float)
            assert item.score == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            assert item.right == (names[item.row] == names[entry.row])
            unseen = with_cameras and item.right and cameras[item.row] == cameras[entry.row]
            assert (item.rank is None) == unseen
        right = [item.rank for item in entry.items if item.right and item.rank]
        if right:
            assert entry.first_right is None
            assert right[0] == entry.first_rank
        else:
            assert entry.first_right.rank == entry.first_rank


def test_best_and_worst_are_the_extremes_and_of_different_people():
    vectors, names, _ = people(np.random.default_rng(1), noise=2.0)
    search = plan_search(vectors, {"identity": names}, ["identification"])
    measured = measure(search)
    lists = ranked_lists(search, measured, count=4, top=5, seed=0)
    chosen = {group: [e for e in lists if e.group == group] for group in ("best", "worst", "random")}
    best_of = {n: measured.average_precision[names == n].max() for n in set(names)}
    worst_of = {n: measured.average_precision[names == n].min() for n in set(names)}
    assert [e.average_precision for e in chosen["best"]] == sorted(best_of.values(), reverse=True)[:4]
    assert [e.average_precision for e in chosen["worst"]] == sorted(worst_of.values())[:4]
    again = ranked_lists(search, measured, count=4, top=5, seed=0)
    other = ranked_lists(search, measured, count=4, top=5, seed=1)
    assert lists == again
    assert [e.row for e in other if e.group == "random"] != [e.row for e in chosen["random"]]
    with pytest.raises(ValueError, match="count"):
        ranked_lists(search, measured, count=MOST_QUERIES + 1, top=5, seed=0)


@pytest.mark.parametrize("protocol", ["identification", "reid", "retrieval"])
def test_confusions_and_identities_equal_a_count_by_hand(protocol):
    vectors, names, cameras = people(np.random.default_rng(2), identities=9, noise=2.5)
    search = plan_search(vectors, reid_columns(names, cameras), [protocol])
    measured = measure(search)
    pairs, taken = confusions(search, measured)
    times, queries, hits, precisions = Counter(), Counter(), Counter(), {}
    for row in search.queries:
        order, ranks, precision = brute_force(search, row)
        seen = [r for r, rank in zip(order, ranks, strict=True) if rank]
        if not any(names[r] == names[row] for r in seen):
            continue
        queries[names[row]] += 1
        precisions.setdefault(names[row], []).append(precision)
        hits[names[row]] += names[seen[0]] == names[row]
        if names[seen[0]] != names[row]:
            times[tuple(sorted((names[row], names[seen[0]])))] += 1
            assert taken[names[row]][names[seen[0]]] > 0
    assert {(p.first, p.second): p.times for p in pairs} == times
    assert [p.times for p in pairs] == sorted(times.values(), reverse=True)
    for pair in pairs:
        assert pair.queries == queries[pair.first] + queries[pair.second]
        assert {names[pair.query_row], names[pair.found_row]} == {pair.first, pair.second}
    rows = by_identity(search, measured, taken)
    assert {r.identity: r.queries for r in rows} == queries
    assert {r.identity: r.rank1 for r in rows} == {n: hits[n] / queries[n] for n in queries}
    for row in rows:
        assert row.mean_ap == pytest.approx(np.mean(precisions[row.identity]))
        assert row.times == max(taken.get(row.identity, Counter({"": 0})).values())
    assert [r.mean_ap for r in rows] == sorted(r.mean_ap for r in rows)


@pytest.mark.parametrize("protocol", ["reid", "identification", "retrieval"])
def test_the_search_is_that_of_the_protocol(protocol):
    vectors, names, cameras = people(np.random.default_rng(3), noise=2.0)
    columns = reid_columns(names, cameras)
    measured = measure(plan_search(vectors, columns, [protocol]))
    expected = PROTOCOLS[protocol](vectors, columns).metrics
    assert measured.rank1 == expected["Recall@1" if protocol == "retrieval" else "rank-1"]


def test_distractors_are_found_but_never_right():
    vectors, names, cameras = people(np.random.default_rng(4), noise=2.0)
    names[names == "person 3"] = "0"
    search = plan_search(vectors, reid_columns(names, cameras), ["reid"], ["0"])
    measured = measure(search)
    assert (
        measured.rank1
        == PROTOCOLS["reid"](vectors, reid_columns(names, cameras), distractors=["0"]).metrics["rank-1"]
    )
    lists = ranked_lists(search, measured, count=8, top=10, seed=0)
    assert all(names[entry.row] != "0" for entry in lists)
    assert any(names[item.row] == "0" and not item.right for entry in lists for item in entry.items)

"""Retrieval measures written as loops, straight from their definitions."""

import numpy as np


def loop_retrieval(
    query, gallery, q_ids, g_ids, q_cams=None, g_cams=None, own=None, distractors=(), max_rank=50
):
    """One query at a time, float64 squared distances, stable sort; None for a query without a positive."""
    rows = []
    for q in range(len(query)):
        distance = [float(((query[q].astype(np.float64) - g.astype(np.float64)) ** 2).sum()) for g in gallery]
        hits = []
        for g in sorted(range(len(gallery)), key=lambda g: distance[g]):
            if own is not None and own[q] == g:
                continue
            same = q_ids[q] == g_ids[g] and q_ids[q] not in distractors
            if same and q_cams is not None and q_cams[q] == g_cams[g]:
                continue
            hits.append(same)
        if not any(hits):
            rows.append(None)
            continue
        ranks = [i + 1 for i, hit in enumerate(hits) if hit]
        r = len(ranks)
        precision = [(i + 1) / rank for i, rank in enumerate(ranks)]
        rows.append(
            {
                "first": ranks[0],
                "positives": r,
                "ap": sum(precision) / r,
                "inp": r / ranks[-1],
                "rp": sum(hits[:r]) / r,
                "map_at_r": sum(p for p, rank in zip(precision, ranks, strict=True) if rank <= r) / r,
                "cmc": [float(any(hits[:k])) for k in range(1, max_rank + 1)],
                "hits": hits,
            }
        )
    return rows

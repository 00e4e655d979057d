"""Index kinds side by side, each beside the plain faiss calls: time, recall, disk, memory.

    python benchmarks/search.py                          # 100,000 x 512
    python benchmarks/search.py --rows 20000 --kinds flat ivf_sq8
    python benchmarks/search.py --model runs/quickstart  # embeddings of that model
    python benchmarks/search.py --million                # 1,000,000 x 128: peak memory of a build

The vectors. A model (`--model`, or a resnet18 trained here for a moment on generated faces) embeds generated
people that it never saw, a few thousand images. These give the centre of each identity and the residual of
each image from it. A new identity mixes two centres, c = m + cos(a) (c1 - m) + sin(a) (c2 - m), with the
grand mean m and a random angle, and its image adds a mix of two residuals of any images,
cos(b) r1 + sin(b) r2. That keeps means and covariances between and within identities: people overlap as they
do for the model.
Queries are further images of the same identities. `--million` keeps the first 128 principal components.

"plain" is `index.search` of faiss on the same file, with the same parameters and queries already of length 1.
"ours" is `SearchIndex.query`: checks and scaling included, but not the names of the hits, which are looked up
when they are read. A round takes one set of queries:
plain once untimed, as the first search of a set pays for the vectors and nodes that it brings into the
caches; then ours, plain, plain, ours, or the reverse in every second round. A ratio is the median over rounds
of the times of ours by those of plain, with its quartiles in brackets; "cpu" is the same in seconds of
processor time, which other programs on the machine disturb less.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from metricid.cli.model import open_model
from metricid.data.embedding_file import write_embeddings
from metricid.data.manifest import Manifest
from metricid.data.ordered import iterate_images
from metricid.data.synthetic.faces import SyntheticFaces
from metricid.data.transforms import build_transform
from metricid.search import KINDS, ArraySource, SearchIndex
from metricid.search.kinds import search_parameters

PER_IDENTITY = 10
K = 10
CHUNK = 20_000
# `metricid` and then the most memory that the process held, files that it mapped included. What the system
# tells of an ended child counts the parent's memory, too, if that was larger when the child began.
PEAK = """
import sys
from metricid.cli.main import main
code = main(sys.argv[1:])
if code:
    sys.exit(code)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def embed_generated(options: argparse.Namespace, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [N, D] of generated people and their identities [N], by a trained model."""
    model, size = options.model, f"[{options.size},{options.size}]"
    if model is None:
        words = ["train", "quickstart", f"data.size={size}", f"train.images={options.train_images}"]
        words += [f"runs={folder}", "name=bench", "evaluation.baselines=[]", "evaluation.every=0"]
        command(words)
        model = str(folder / "bench")
    embedder = open_model(model)
    source = SyntheticFaces(
        identities=options.identities, images=6, size=embedder.preprocessing.size, first_identity=100_000
    )
    paths = source.paths()
    vectors = np.empty((len(paths), embedder.output_dim), np.float32)
    transform = build_transform("plain", size=embedder.preprocessing.size, train=False)
    for images, places in iterate_images(
        source, paths, transform, batch_size=64, workers=0, on_corrupt="error"
    ):
        vectors[places] = embedder.embed(images, flip=True).cpu().numpy()
    return vectors, np.array([path.rsplit("/", 1)[0] for path in paths])


def command(words: list[str]) -> None:
    """Runs `metricid`, quietly."""
    done = subprocess.run([sys.executable, "-m", "metricid.cli.main", *words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


class People:
    """Any number of vectors with the statistics of some real ones.

    Args:
        vectors: [N, D] of a model.
        identities: [N], each with two images or more.
    """

    def __init__(self, vectors: np.ndarray, identities: np.ndarray):
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        _, label = np.unique(identities, return_inverse=True)
        counts = np.bincount(label)
        self.mean = vectors.mean(axis=0)
        centres = np.zeros((len(counts), vectors.shape[1]), np.float32)
        np.add.at(centres, label, vectors)
        centres /= counts[:, None]
        # The mean of n images lies nearer to them than the true centre does.
        self.residuals = (vectors - centres[label]) * np.sqrt(counts / (counts - 1))[label][:, None]
        self.centres = centres - self.mean

    def reduced(self, dimension: int) -> "People":
        """The same on its first principal components."""
        spread = np.concatenate([self.centres, self.residuals])
        axes = np.linalg.svd(spread - spread.mean(axis=0), full_matrices=False)[2][:dimension].T
        other = object.__new__(People)
        other.mean, other.centres, other.residuals = (
            self.mean @ axes,
            self.centres @ axes,
            self.residuals @ axes,
        )
        return other

    def make(self, identities: np.ndarray, seed: int) -> np.ndarray:
        """[N, D] float32: an image of each identity number; the number decides the centre."""
        numbers, place = np.unique(identities, return_inverse=True)
        centre = np.empty((len(numbers), len(self.mean)), np.float32)
        for row, number in enumerate(numbers):
            random = np.random.default_rng([7, int(number)])
            first, second = random.integers(len(self.centres), size=2)
            angle = random.uniform(0, 2 * np.pi)
            centre[row] = np.cos(angle) * self.centres[first] + np.sin(angle) * self.centres[second]
        random = np.random.default_rng(seed)
        one, two = random.integers(len(self.residuals), size=(2, len(identities)))
        angle = random.uniform(0, 2 * np.pi, size=(len(identities), 1)).astype(np.float32)
        residual = np.cos(angle) * self.residuals[one] + np.sin(angle) * self.residuals[two]
        vectors = (self.mean + centre[place] + residual).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def rows_of(identities: np.ndarray, first: int = 0) -> pa.Table:
    """A table like that of a manifest."""
    names = [f"id{number:07}" for number in identities]
    paths = [f"{name}/{first + place:08}.jpg" for place, name in enumerate(names)]
    cameras = [str(place % 6) for place in range(len(names))]
    return pa.table({"path": paths, "identity": names, "camera": cameras})


def timed(call: Callable[[np.ndarray], Any], queries: np.ndarray) -> np.ndarray:
    """Seconds of one call: of the clock, and of the processor in all threads."""
    start = time.perf_counter(), time.process_time()
    call(queries)
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


def paired(
    ours: Callable[[np.ndarray], Any],
    plain: Callable[[np.ndarray], Any],
    sets: list[np.ndarray],
    budget: float,
) -> dict[str, float]:
    """Medians of both and of their ratio with its quartiles, in rounds for some seconds."""
    ours(sets[0]), plain(sets[0])
    rounds: list[np.ndarray] = []
    start = time.perf_counter()
    while len(rounds) < 15 or (time.perf_counter() - start < budget and len(rounds) < 2000):
        queries = sets[len(rounds) % len(sets)]
        outer, inner = (ours, plain) if len(rounds) % 2 else (plain, ours)
        plain(queries)
        times = [timed(call, queries) for call in (outer, inner, inner, outer)]
        both = np.array([times[0] + times[3], times[1] + times[2]]) / 2
        rounds.append(both if outer is ours else both[::-1])
    ours_s, plain_s = np.moveaxis(np.array(rounds), 1, 0)  # [rounds, 2] each
    low, ratio, high = np.quantile(ours_s[:, 0] / plain_s[:, 0], [0.25, 0.5, 0.75])
    return {
        "ours_ms": float(np.median(ours_s[:, 0])) * 1e3,
        "plain_ms": float(np.median(plain_s[:, 0])) * 1e3,
        "ratio": ratio,
        "low": low,
        "high": high,
        "cpu_ratio": float(np.median(ours_s[:, 1] / plain_s[:, 1])),
        "rounds": len(rounds),
    }


def plain_search(index: SearchIndex) -> Callable[[np.ndarray], Any]:
    """`index.search` of faiss with the parameters of our index, without our layer."""
    parameters = search_parameters(index.card["kind"], index.card["effort"], K)
    plain = index._index.index
    return lambda queries: plain.search(queries, K, params=parameters)


def memory_of(folder: Path, queries: np.ndarray) -> dict[str, float]:
    """Memory that a fresh process needs more once it has opened the index and searched, in MB."""
    file = folder.parent / "queries.npy"
    np.save(file, queries[:200])
    script = (
        "import sys, json, numpy as np\n"
        "from metricid.search import SearchIndex\n"
        "def held():\n"
        "    lines = dict(l.split(':', 1) for l in open('/proc/self/status') if l.startswith('Rss'))\n"
        "    return [int(lines[n].split()[0]) / 1024 for n in ('RssAnon', 'RssFile')]\n"
        "queries = np.load(sys.argv[2]); before = held()\n"
        "index = SearchIndex(sys.argv[1]); index.query(queries, 10); after = held()\n"
        "print(json.dumps([b - a for a, b in zip(before, after)]))\n"
    )
    words = [sys.executable, "-c", script, str(folder), str(file)]
    anonymous, mapped = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    return {"own_mb": anonymous, "mapped_mb": mapped}


def measure(
    kind: str, vectors: np.ndarray, rows: pa.Table, queries: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Everything about one kind."""
    place = folder / f"{kind}.index"
    began = time.perf_counter()
    index = SearchIndex.build(place, ArraySource(vectors, rows), kind=kind)
    built = time.perf_counter() - began
    exact = faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    found = [
        index.query(queries[i : i + 100], K).rows["path"].to_pylist() for i in range(0, len(queries), 100)
    ]
    keys = np.array([key for part in found for key in part], object).reshape(-1, K)
    truth = np.array(rows["path"].to_pylist(), object)[exact]
    recall = np.mean([len(set(a) & set(b)) for a, b in zip(truth, keys, strict=True)]) / K
    plain = plain_search(index)
    result: dict[str, Any] = {
        "kind": kind,
        "build_s": built,
        "recall": recall,
        "effort": index.card["effort"],
    }
    result["card_recall"] = index.card["recall"]["value"]
    result["disk_mb"] = index.stats()["disk_bytes"] / 1e6
    for batch in (1, 100):
        # Copies: where an array begins changes the time of faiss by up to a quarter.
        sets = [queries[i : i + batch].copy() for i in range(0, len(queries) - batch + 1, batch)]
        result[f"batch{batch}"] = paired(lambda one: index.query(one, K), plain, sets, 10.0)
    index.close()
    return result | memory_of(place, queries)


def table(results: list[dict[str, Any]]) -> str:
    """The results for people; times are ours, per query."""
    wide = " ".join(f"{f'ms, batch {batch}':>11} {'beside plain':>19} {'cpu':>6}" for batch in (1, 100))
    lines = [
        f"{'kind':<8} {'build s':>8} {'recall@10':>9} {wide} {'disk MB':>8} {'own MB':>7} {'mapped MB':>9}"
    ]
    for r in results:
        cells = []
        for batch in (1, 100):
            b = r[f"batch{batch}"]
            ratio = f"{b['ratio']:.3f} [{b['low']:.3f} {b['high']:.3f}]"
            cells.append(f"{b['ours_ms'] / batch:>11.3f} {ratio:>19} {b['cpu_ratio']:>6.3f}")
        lines.append(
            f"{r['kind']:<8} {r['build_s']:8.1f} {r['recall']:9.4f} {' '.join(cells)} "
            f"{r['disk_mb']:8.1f} {r['own_mb']:7.1f} {r['mapped_mb']:9.1f}"
        )
    return "\n".join(lines)


def busy() -> str:
    """How much else the machine has to do."""
    return f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def million(people: People, options: argparse.Namespace, folder: Path) -> None:
    """Peak memory and time of `metricid search build` on 128-wide vectors."""
    people, count = people.reduced(128), options.rows
    file = folder / "million.parquet"
    identities = np.arange(count) // PER_IDENTITY
    rows = rows_of(identities)
    card = {"model": "benchmark", "flip": False}

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, count, CHUNK):
            yield people.make(identities[start : start + CHUNK], seed=start + 1)

    write_embeddings(file, Manifest(rows), blocks(), card, dimension=128)
    for kind in options.kinds:
        place = folder / f"{kind}.index"
        words = ["search", "build", str(file), "-o", str(place), "--kind", kind]
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", PEAK, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"the build of {kind} failed: {done.stderr[-500:]}")
        seconds = time.perf_counter() - began
        index = SearchIndex(place)
        print(
            f"{count:,} x 128, {index.card['kind']}: built in {seconds:.0f} s ({busy()}), "
            f"peak memory {int(done.stdout.split()[-1]) / 1024:.0f} MiB, "
            f"recall@10 {index.card['recall']['value']}, {index.stats()['disk_bytes'] / 1e6:.0f} MB on disk",
            flush=True,
        )


def main() -> None:
    """Makes the vectors, measures each kind, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="default: 100,000, or 1,000,000 for --million")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", choices=["auto", *KINDS])
    parser.add_argument("--model", help="run, checkpoint or ONNX file in place of one trained here")
    parser.add_argument("--size", type=int, default=64, help="pixels of the images that train here")
    parser.add_argument("--train-images", type=int, default=6000)
    parser.add_argument("--identities", type=int, default=600, help="generated people that are embedded")
    parser.add_argument("--million", action="store_true", help="measure a large build in place of the kinds")
    parser.add_argument("--json", type=Path, help="write the results there")
    options = parser.parse_args()
    options.rows = options.rows or (1_000_000 if options.million else 100_000)
    options.kinds = options.kinds or list(KINDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        people = People(*embed_generated(options, folder))
        threads = faiss.omp_get_max_threads()
        print(f"faiss {faiss.__version__}, {threads} threads, {len(people.residuals)} real embeddings")
        if options.million:
            million(people, options, folder)
            return
        identities = np.arange(options.rows) // PER_IDENTITY
        vectors, rows = people.make(identities, seed=1), rows_of(identities)
        asked = np.random.default_rng(3).integers(identities[-1] + 1, size=options.queries)
        queries = people.make(asked, seed=2)
        print(f"{options.rows:,} x {vectors.shape[1]}, {len(queries)} queries, k = {K}")
        results = []
        for kind in options.kinds:
            print(f"{kind} ({busy()})", file=sys.stderr, flush=True)
            results.append(measure(kind, vectors, rows, queries, folder))
    print(table(results))
    print(busy())
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

"""The losses on one recipe at an equal number of images: trains each in turn and prints one table.

Runs that have ended are not repeated, interrupted ones continue. Raw pixels and the untrained network are the
baselines.

    python benchmarks/objectives.py market_r18_cpu --images 18208
    python benchmarks/objectives.py lfw_r18_cpu --images 16160 --only softmax,supcon seed=1
"""

import argparse
import json
import subprocess
import sys
from typing import Any

SMOOTH = "{loss: softmax, label_smoothing: 0.1}"
OBJECTIVES = {
    "softmax": f"[{SMOOTH}]",
    "triplet": f"[{SMOOTH}, {{loss: triplet, margin: null, on: features}}]",
    "arcface": "[{loss: arcface, scale: 24, margin: 0.3}]",
    "contrastive": f"[{SMOOTH}, {{loss: contrastive}}]",
    "center": f"[{SMOOTH}, {{loss: center, weight: 0.0005, on: features}}]",
    "supcon": f"[{SMOOTH}, {{loss: supcon}}]",
}
BASELINES = "evaluation.baselines=[pixels, random]"
SHOWN = ("rank-1", "mAP", "Recall@1", "MAP@R", "TAR@FAR=0.1", "TAR@FAR=0.01")


def train(recipe: str, name: str, overrides: list[str]) -> dict[str, Any]:
    """Trains one objective in a process of its own; returns its results."""
    command = [
        sys.executable,
        "-m",
        "metricid.cli.main",
        "train",
        recipe,
        f"name={name}",
        *overrides,
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def measures(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Subject -> measure -> value, for the measures that are shown."""
    found: dict[str, dict[str, float]] = {}
    for result in results:
        row = found.setdefault(result["subject"], {})
        for name in SHOWN:
            if name in result["metrics"]:
                row.setdefault(name, result["metrics"][name])
    return found


def main() -> None:
    """Runs and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="for all runs, such as seed=1")
    parser.add_argument("--images", type=int, required=True, help="images that each training sees")
    parser.add_argument("--only", default=",".join(OBJECTIVES), help="comma-separated names of objectives")
    parser.add_argument("--prefix", help="of the run names (default: the recipe)")
    options = parser.parse_args()
    rows: list[tuple[str, dict[str, float], str]] = []
    baselines: dict[str, dict[str, float]] = {}
    for name in options.only.split(","):
        overrides = [f"train.images={options.images}", f"objective={OBJECTIVES[name]}"]
        overrides += [BASELINES] if name == "supcon" else []
        run = train(
            options.recipe, f"{options.prefix or options.recipe}_{name}", overrides + options.overrides
        )
        model, *others = measures(run["results"]).items()
        label = name if name in ("softmax", "arcface") else f"softmax + {name}"
        rows.append((label, model[1], f"{run['train_seconds']:.0f} s"))
        baselines |= dict(others)
    rows += [(subject, values, "") for subject, values in baselines.items()]
    columns = [name for name in SHOWN if any(name in values for _, values, _ in rows)]
    print(f"| objective, {options.images:,} images | " + " | ".join(columns) + " | training |")
    print("|---" * (len(columns) + 2) + "|")
    for label, values, seconds in rows:
        cells = [f"{100 * values[name]:.1f}" if name in values else "" for name in columns]
        print(f"| {label} | " + " | ".join(cells) + f" | {seconds} |")


if __name__ == "__main__":
    main()

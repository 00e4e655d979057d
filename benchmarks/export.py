"""How long one forward pass takes: PyTorch, the exported ONNX file, and its int8 form.

All embed the same uint8 images from memory, normalisation included, in turns in one process on the same
number of threads. A ratio is the median of the ratios of the rounds, so that a machine that slows down for a
while slows all sides of it.

    python benchmarks/export.py                       # resnet18 at 112x112, batches of 1, 8 and 32
    python benchmarks/export.py --backbone vit_tiny_patch16_224 --size 224x224 --rounds 30
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping

import torch
from torch import nn

from metricid.export import export_onnx, quantize_int8
from metricid.models.embedder import Embedder, EmbedderConfig, Preprocessing
from metricid.models.inference import CheckpointModel, InferenceModel
from metricid.models.onnx import OnnxModel
from metricid.models.onnx_file import OnnxFile
from metricid.training.precision import pick_precision

BATCHES = (1, 8, 32)


def build(backbone: str, size: tuple[int, int]) -> Embedder:
    """The network with weights that all matter: an untrained one has zeros at the end of each block."""
    torch.manual_seed(0)
    embedder = Embedder(EmbedderConfig(backbone, Preprocessing(size), neck="bnneck")).eval()
    for module in embedder.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.1)
    return embedder


def models_of(embedder: Embedder, images: torch.Tensor) -> dict[str, InferenceModel]:
    """PyTorch in float32 and, where the processor has it, bfloat16; the export; its int8 form."""
    cpu = torch.device("cpu")
    models: dict[str, InferenceModel] = {"PyTorch fp32": CheckpointModel(embedder, name="fp32", device=cpu)}
    fast = pick_precision("auto", cpu)
    if fast.name != "fp32":
        models[f"PyTorch {fast.name}"] = CheckpointModel(
            embedder, name=fast.name, device=cpu, autocast=fast.autocast, precision=fast.name
        )
    exported = OnnxModel(OnnxFile.parse(export_onnx(embedder, name="benchmark"), "float.onnx"))
    models["ONNX fp32"] = exported
    models["ONNX int8"] = OnnxModel(OnnxFile.parse(quantize_int8(exported, images), "int8.onnx"))
    return models


def milliseconds(
    models: Mapping[str, InferenceModel], images: torch.Tensor, rounds: int
) -> dict[str, list[float]]:
    """Time of one call in each round, after two to warm up."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(rounds + 2):
        for name, model in models.items():
            began = time.perf_counter()
            model.embed(images, flip=False)
            if turn >= 2:
                times[name].append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", default="112x112", help="height x width")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of PyTorch and onnxruntime (default: PyTorch's own)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    height, width = map(int, options.size.split("x"))
    pool = torch.randint(0, 256, (64, height, width, 3), dtype=torch.uint8)
    models = models_of(build(options.backbone, (height, width)), pool)
    found = {}
    for batch in BATCHES:
        print(f"batch {batch} ...", file=sys.stderr)
        found[batch] = milliseconds(models, pool[:batch], options.rounds)
    baseline = next(iter(models))
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "milliseconds": found}))
        return
    print(
        f"{options.backbone}, {options.size}, CPU, {torch.get_num_threads()} threads, "
        f"median of {options.rounds} rounds; in brackets: times as fast as {baseline}"
    )
    print(f"{'':14}" + "".join(f"{f'batch {batch}':>20}" for batch in BATCHES))
    for name in models:
        cells = []
        for batch in BATCHES:
            pairs = zip(found[batch][baseline], found[batch][name], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            cells.append(f"{statistics.median(found[batch][name]):8.2f} ms ({ratio:.2f}x)")
        print(f"{name:14}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()

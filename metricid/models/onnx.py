"""An ONNX embedder, our export or anybody's, behind the interface of all models."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metricid.errors import InputError
from metricid.models.inference import preprocessing_to_dict
from metricid.models.onnx_file import OnnxFile, import_onnxruntime
from metricid.models.onnx_plan import OnnxOptions, plan_foreign, plan_own
from metricid.models.weights import first_line

PROBE = 2


class OnnxModel:
    """An ONNX embedder run by onnxruntime; it fulfils `InferenceModel`.

    A file of `metricid export` needs no options and, unless it was changed since, has the fingerprint that
    the export gave it: in float that of its checkpoint, so that an index of the one serves the other.

    Args:
        file: the file, or its path.
        device: `cuda` takes onnxruntime's CUDA provider, everything else its CPU provider.
        options: what the file does not say.

    Raises:
        InputError: a file, or options, that cannot be used, or a provider that this onnxruntime has not.
    """

    def __init__(
        self,
        file: OnnxFile | str | Path,
        *,
        device: torch.device | None = None,
        options: OnnxOptions | None = None,
    ):
        self.file = file if isinstance(file, OnnxFile) else OnnxFile.read(file)
        self._session = _open_session(self.file, device or torch.device("cpu"))
        card = self.file.card
        if card is None:
            self._plan = plan_foreign(self.file.name, self._session, options or OnnxOptions())
        else:
            self._plan = plan_own(self.file, self._session, (options or OnnxOptions()).given())
        self.batch_limit = self._plan.batch
        self.preprocessing = self._plan.preprocessing
        self.output_dim = self._measure()
        short = Path(self.file.name).name
        self.name = short if card is None else f"{card['name']}, {short}"
        self.precision = str(card["precision"]) if card else str(self._plan.dtype).removeprefix("torch.")
        self.fingerprint = self._fingerprint()

    @property
    def provider(self) -> str:
        """The part of onnxruntime that computes: `CPUExecutionProvider` or `CUDAExecutionProvider`."""
        return self._session.get_providers()[0]

    def embed(self, images: Tensor, *, flip: bool) -> Tensor:
        """Embeds images.

        Args:
            images: uint8 [B, H, W, 3], RGB, of the size of `preprocessing`.
            flip: add the embedding of the mirrored image, f(x) + f(flip x).

        Returns:
            float32 [B, D] in main memory, not normalised.
        """
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[-1] != 3:
            raise ValueError(f"expected uint8 images [B, H, W, 3], got {images.dtype} {tuple(images.shape)}")
        images = images.cpu()
        vectors = self._forward(images)
        return vectors + self._forward(images.flip(2)) if flip else vectors

    def describe(self) -> dict[str, Any]:
        """What a card says of the model, as JSON."""
        plan = self._plan
        said = {
            "kind": "onnx",
            "name": self.name,
            "fingerprint": self.fingerprint,
            "dimension": self.output_dim,
            "preprocessing": preprocessing_to_dict(self.preprocessing),
            "precision": self.precision,
            "input": {"layout": plan.layout, "dtype": str(plan.dtype).removeprefix("torch.")},
        }
        if self.file.card is not None and self.file.card.get("source") not in (None, self.fingerprint):
            said["source"] = self.file.card["source"]
        return said

    def _forward(self, images: Tensor) -> Tensor:
        """All images, in pieces of the fixed batch if there is one; the last piece is filled up."""
        fixed = self.batch_limit
        if fixed is None or len(images) == 0:
            return self._run(images) if len(images) else torch.empty(0, self.output_dim)
        parts = []
        for part in images.split(fixed):
            missing = fixed - len(part)
            whole = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            parts.append(self._run(whole)[: len(part)])
        return torch.cat(parts)

    def feed(self, images: Tensor) -> dict[str, Any]:
        """What the session takes for uint8 [B, H, W, 3] RGB images: the input's name and its array."""
        plan = self._plan
        x = images.flip(3) if plan.swap else images
        if not plan.raw:
            shift = 255.0 * torch.tensor(plan.preprocessing.mean)
            scale = 1.0 / (255.0 * torch.tensor(plan.preprocessing.std))
            x = (x.float() - shift) * scale
        x = x.permute(0, 3, 1, 2) if plan.layout == "NCHW" else x
        return {plan.input: x.to(plan.dtype).contiguous().numpy()}

    def _run(self, images: Tensor) -> Tensor:
        """One call of the session."""
        plan = self._plan
        (vectors,) = self._session.run([plan.output], self.feed(images))
        vectors = np.asarray(vectors)
        while vectors.ndim > 2 and vectors.shape[-1] == 1:
            vectors = vectors[..., 0]
        if vectors.ndim != 2 or len(vectors) != len(images):
            raise InputError(
                f"{self.file.name}: output {plan.output} has shape {list(vectors.shape)} for {len(images)} "
                "images, not one vector per image; name another one with --onnx output=NAME"
            )
        return torch.from_numpy(vectors.astype(np.float32, copy=False))

    def _measure(self) -> int:
        """The width, by a forward pass: it shows at once whether the file runs on images of this size."""
        height, width = self.preprocessing.size
        tries = [self.batch_limit or PROBE] + ([] if self.batch_limit else [1])
        problem: Exception | None = None
        for count in tries:
            try:
                found = self._run(torch.zeros(count, height, width, 3, dtype=torch.uint8)).shape[1]
            except Exception as error:  # onnxruntime's exceptions have no base class of their own
                problem = problem or error
                continue
            if count != tries[0]:
                self.batch_limit = count
            return found
        assert problem is not None
        if isinstance(problem, InputError):
            raise problem
        raise InputError(
            f"{self.file.name}: cannot take {height}x{width} images ({first_line(problem)}); "
            "give the right one: --onnx size=HEIGHTxWIDTH"
        ) from problem

    def _fingerprint(self) -> str:
        card = self.file.card
        if card is not None and card["graph"] == self.file.digest:
            return str(card["fingerprint"])
        plan = self._plan
        said = {
            "graph": self.file.digest,
            "output": plan.output,
            "layout": plan.layout,
            "preprocessing": preprocessing_to_dict(plan.preprocessing),
        }
        return onnx_fingerprint(said)


def onnx_fingerprint(said: dict[str, Any]) -> str:
    """SHA-256, as hex, over what determines the embeddings of an ONNX file."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def cuda_available() -> bool:
    """Whether the onnxruntime installed here can use a CUDA GPU."""
    return "CUDAExecutionProvider" in import_onnxruntime().get_available_providers()


def _open_session(file: OnnxFile, device: torch.device) -> Any:
    runtime = import_onnxruntime()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if not cuda_available():
            raise InputError(
                "--device: the onnxruntime installed here has no CUDA provider; "
                "pip install onnxruntime-gpu, or give --device cpu"
            )
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    try:
        session = runtime.InferenceSession(str(file.path) if file.path else file.data, settings, providers)
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise _refused(file.name, error, runtime.__version__) from error
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise InputError(
            f"--device: onnxruntime {runtime.__version__} could not start its CUDA provider (its CUDA or "
            "cuDNN version may be another than this machine's); give --device cpu"
        )
    return session


def _refused(name: str, error: Exception, version: str) -> InputError:
    """Why a session could not be made."""
    text = " ".join(str(error).split())
    unknown = ("is not a registered function/op", "No Op registered", "NOT_IMPLEMENTED", "No opset import")
    if any(part in text for part in unknown):
        return InputError(
            f"{name}: needs an operator that onnxruntime {version} does not know ({text[:200]}); "
            "export it again with standard operators, or update onnxruntime"
        )
    return InputError(f"{name}: onnxruntime {version} refuses it ({text[:200]}); export it again")

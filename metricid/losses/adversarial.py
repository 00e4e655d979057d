"""Adversarial training in the input: virtual adversarial and TRADES terms.

Both take a callable from images to logits and the images. Perturbations are measured in gray levels, 0 to
255, whatever the scaling of the model's input. `ADVERSARIAL` knows them, and those of `domain`, by name.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses.checks import check_options, compute_dtype, no_autocast
from metricid.registry import Registry

ADVERSARIAL = Registry("adversarial loss", key="loss")

Model = Callable[[Tensor], Tensor]
BatchNorm = Literal["running", "batch"]


@contextmanager
def frozen_statistics(model: Model, batch_norm: BatchNorm) -> Iterator[None]:
    """A region in which no forward pass changes the running statistics of normalisation layers.

    Args:
        model: its batch norms are found if it is a module; a plain function is left as it is, and must see to
            its statistics itself.
        batch_norm: 'running' normalises by the running statistics, and switches dropout off, as `eval` does;
            'batch' by those of the batch, and leaves dropout as it is.
    """
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(part, part.training) for part in model.modules()]
    norms = [
        (part, part.track_running_stats)
        for part, _ in modes
        if isinstance(part, nn.modules.batchnorm._NormBase)
    ]
    try:
        if batch_norm == "running":
            model.eval()
        else:
            for norm, tracks in norms:
                # A layer in eval mode normalises by its buffers only if they are tracked: leave it so.
                norm.track_running_stats = tracks and not norm.training
        yield
    finally:
        for part, mode in modes:
            part.training = mode
        for norm, tracks in norms:
            norm.track_running_stats = tracks


def divergence(clean: Tensor, other: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(other)) of logits [B, C], mean over the batch, in nats."""
    dtype = compute_dtype(clean, other)
    with no_autocast(clean):
        p, q = (F.log_softmax(z.to(dtype), dim=1) for z in (clean, other))
        return F.kl_div(q, p, log_target=True, reduction="batchmean")


class PixelScale:
    """How far one gray level reaches in the input of a model, and where the valid range ends.

    Args:
        mean: per channel, in [0, 1], as the images were normalised: (pixel / 255 - mean) / std.
        std: per channel, > 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        check_options(
            mean=(len(mean) > 0 and all(map(math.isfinite, mean)), f"must be finite numbers, got {mean}"),
            std=(
                len(std) == len(mean) and all(0 < s < math.inf for s in std),
                f"must be as many positive numbers as mean has, got {std}",
            ),
        )
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One gray level and the ends of the valid range, each [C, 1, 1] in the dtype of the images.

        Raises:
            ValueError: not float images [B, C, H, W] of as many channels.
        """
        if images.ndim != 4 or not images.is_floating_point() or images.shape[1] != len(self.mean):
            raise ValueError(
                f"images must be a float tensor [B, {len(self.mean)}, H, W], "
                f"got {images.dtype} {list(images.shape)}"
            )
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return 1 / (255 * std), -mean / std, (1 - mean) / std


def projected_gradient(
    objective: Callable[[Tensor], Tensor],
    images: Tensor,
    scale: tuple[Tensor, Tensor, Tensor],
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    start: Tensor,
) -> Tensor:
    """Images near the given ones that raise an objective (Madry et al., ICLR 2018, section 2.1).

    x <- clip(x + step_size sign(gradient), x_0 - epsilon, x_0 + epsilon), also clipped to the valid range.

    Args:
        objective: maps images to a scalar that is to rise.
        images: x_0 [B, C, H, W].
        scale: what `PixelScale` gives for them.
        epsilon: largest change of a pixel, in gray levels.
        step_size: in gray levels.
        steps: number of steps.
        start: first change [B, C, H, W], in gray levels.

    Returns:
        Images [B, C, H, W] without a graph; no parameter gets a gradient.
    """
    level, low, high = scale
    clean = images.detach()
    reach = epsilon * level
    lowest = torch.maximum(clean - reach, torch.minimum(low, clean))
    highest = torch.minimum(clean + reach, torch.maximum(high, clean))
    x = (clean + start * level).clamp(lowest, highest)
    for _ in range(steps):
        x.requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(objective(x), x)
        x = (x.detach() + step_size * level * slope.sign()).clamp(lowest, highest)
    return x.detach()


def virtual_perturbation(
    model: Model, images: Tensor, clean: Tensor, level: Tensor, *, xi: float, steps: int, start: Tensor
) -> Tensor:
    """The direction in which the prediction changes most (Miyato et al., TPAMI 2018).

    Power iteration on the Hessian of KL(p(x) || p(x + r)) at r = 0, by differences: d <- gradient at xi d,
    put to unit length.

    Args:
        model: maps images to logits.
        images: [B, C, H, W].
        clean: logits of the images, without a graph.
        level: one gray level of the images.
        xi: root mean square of the probe, in gray levels.
        steps: iterations.
        start: [B, C, H, W], the first direction.

    Returns:
        [B, C, H, W], in gray levels with root mean square 1 for each image; 0 where the prediction does not
        change at all.
    """
    direction = _unit_rms(start)
    for _ in range(steps):
        r = direction.requires_grad_(True)
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(divergence(clean, model(images + xi * level * r)), r)
        direction = _unit_rms(slope.detach())
    return direction


def _unit_rms(x: Tensor) -> Tensor:
    """Each image's values at root mean square 1; by its largest first, as squares of small ones vanish."""
    x = x / _one_for_zero(x.abs().amax(dim=(1, 2, 3), keepdim=True))
    return x / _one_for_zero(x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt())


def _one_for_zero(x: Tensor) -> Tensor:
    return x.where(x > 0, 1)


def _search_region(images: Tensor, autocast: bool) -> torch.autocast | nullcontext[None]:
    return nullcontext() if autocast else no_autocast(images)


@ADVERSARIAL.register("virtual_adversarial")
class VirtualAdversarialLoss(nn.Module):
    """KL(p(x) || p(x + r)) at the small r that raises it most; needs no labels (Miyato et al., TPAMI 2018).

    The first p is a constant, as in the authors' code. Lengths are root mean squares in gray levels, so that
    they depend neither on the size of the images nor on their scaling; the paper's epsilon is the L2 length
    of the whole r in its own scaling.

    No pass changes running statistics of batch norm: the perturbed images are no training data.

    Args:
        mean: per channel, as the images were normalised: (pixel / 255 - mean) / std.
        std: per channel.
        epsilon: root mean square of r in gray levels; tune it first.
        xi: root mean square of the probe, in gray levels. The paper's 1e-6 is less than float32 resolves in
            an image.
        steps: power iterations; each is one forward and one backward pass.
        batch_norm: how batch norms in training mode normalise the perturbed images: 'batch' (the authors'
            code) or 'running'.
        autocast: search under the caller's autocast. Faster, but bfloat16 rounds a probe of less than a gray
            level away: raise xi with it.
    """

    kind: ClassVar[str] = "adversarial"
    formula: ClassVar[str] = "KL(p(x) || p(x + r)), r the worst of length epsilon"
    use: ClassVar[str] = "few labels, or predictions that jump under small changes"
    source: ClassVar[str] = "Miyato et al., TPAMI 2018"

    def __init__(
        self,
        *,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        epsilon: float = 8.0,
        xi: float = 0.1,
        steps: int = 1,
        batch_norm: BatchNorm = "batch",
        autocast: bool = False,
    ):
        super().__init__()
        check_options(**_rules(epsilon=epsilon, xi=xi, steps=steps, batch_norm=batch_norm))
        self.scale = PixelScale(mean, std)
        self.epsilon = epsilon
        self.xi = xi
        self.steps = steps
        self.batch_norm: BatchNorm = batch_norm
        self.autocast = autocast

    def forward(self, model: Model, images: Tensor, logits: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            model: maps images to logits [B, K].
            images: [B, C, H, W].
            logits: what the model gave for the images in this step; None computes them.

        Returns:
            Scalar, mean over the batch, in nats.
        """
        level = self.scale(images)[0]
        x = images.detach()
        with frozen_statistics(model, self.batch_norm):
            with _search_region(x, self.autocast):
                with torch.no_grad():
                    clean = model(x)  # the search compares like with like: the same mode and precision
                r = virtual_perturbation(
                    model, x, clean, level, xi=self.xi, steps=self.steps, start=torch.randn_like(x)
                )
            if logits is None:
                with torch.no_grad():
                    logits = model(x)
            return divergence(logits.detach(), model(x + self.epsilon * level * r))

    def extra_repr(self) -> str:
        return (
            f"epsilon={self.epsilon}, xi={self.xi}, steps={self.steps}, batch_norm={self.batch_norm}, "
            f"autocast={self.autocast}"
        )


@ADVERSARIAL.register("trades")
class TradesLoss(nn.Module):
    """Classification loss plus beta KL(p(x) || p(x')), x' the worst near x (Zhang et al., ICML 2019).

    x' is found by projected gradient in the largest norm, from small noise. Both sides of the divergence get
    gradients, as in the authors' code.

    Args:
        mean: per channel, as the images were normalised: (pixel / 255 - mean) / std.
        std: per channel.
        beta: weight of the divergence, 1 / lambda in the paper.
        epsilon: largest change of a pixel in gray levels (the paper: .031 of 255).
        step_size: in gray levels (the paper: .007 of 255).
        steps: each is one forward and one backward pass.
        batch_norm: how the search normalises: 'running' (`eval` mode, the authors' code) or 'batch'. The
            search changes no running statistics in either.
        count_adversarial: let the last pass, over x', move the running statistics as the authors' code does.
        autocast: search under the caller's autocast: faster; in float16 small gradients vanish, and with them
            a part of the search.
    """

    kind: ClassVar[str] = "adversarial"
    formula: ClassVar[str] = "L_cls(x, y) + beta KL(p(x) || p(x')), |x' - x|_max <= epsilon"
    use: ClassVar[str] = "a classifier that must withstand manipulated images; costs some accuracy"
    source: ClassVar[str] = "Zhang et al., ICML 2019"

    def __init__(
        self,
        *,
        mean: tuple[float, ...] = (0.485, 0.456, 0.406),
        std: tuple[float, ...] = (0.229, 0.224, 0.225),
        beta: float = 6.0,
        epsilon: float = 7.905,
        step_size: float = 1.785,
        steps: int = 10,
        batch_norm: BatchNorm = "running",
        count_adversarial: bool = True,
        autocast: bool = False,
    ):
        super().__init__()
        check_options(
            **_rules(beta=beta, epsilon=epsilon, step_size=step_size, steps=steps, batch_norm=batch_norm)
        )
        self.scale = PixelScale(mean, std)
        self.beta = beta
        self.epsilon = epsilon
        self.step_size = step_size
        self.steps = steps
        self.batch_norm: BatchNorm = batch_norm
        self.count_adversarial = count_adversarial
        self.autocast = autocast

    def forward(
        self,
        model: Model,
        images: Tensor,
        labels: Tensor,
        classification: Callable[[Tensor, Tensor], Tensor] | None = F.cross_entropy,
        logits: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch.

        Args:
            model: maps images to logits [B, K].
            images: [B, C, H, W].
            labels: what `classification` takes beside the logits: [B] int64 in [0, K).
            classification: L_cls, maps logits [B, K] and labels to a scalar; None leaves it out.
            logits: what the model gave for the images in this step, with the graph; None computes them.

        Returns:
            Scalar, mean over the batch.
        """
        scale = self.scale(images)
        x = images.detach()
        with frozen_statistics(model, self.batch_norm), _search_region(x, self.autocast):
            with torch.no_grad():
                clean = model(x)
            worst = projected_gradient(
                lambda other: len(x) * divergence(clean, model(other)),
                x,
                scale,
                epsilon=self.epsilon,
                step_size=self.step_size,
                steps=self.steps,
                start=1e-3 * 255 * torch.randn_like(x),
            )
        if logits is None:
            logits = model(images)
        with nullcontext() if self.count_adversarial else frozen_statistics(model, "batch"):
            other = model(worst)
        wide = logits.to(compute_dtype(logits))
        with no_autocast(logits):
            penalty = self.beta * divergence(wide, other)
            return penalty if classification is None else classification(wide, labels) + penalty

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, epsilon={self.epsilon}, step_size={self.step_size}, steps={self.steps}, "
            f"batch_norm={self.batch_norm}, count_adversarial={self.count_adversarial}, "
            f"autocast={self.autocast}"
        )


def _rules(*, steps: int, batch_norm: str, **lengths: float) -> dict[str, tuple[bool, str]]:
    return {
        "steps": (steps >= 1, f"must be at least 1, got {steps}"),
        "batch_norm": (
            batch_norm in ("running", "batch"),
            f"must be 'running' or 'batch', got {batch_norm!r}",
        ),
    } | {name: (0 <= value < math.inf, f"must be at least 0, got {value}") for name, value in lengths.items()}

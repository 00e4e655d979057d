"""Centers, regularisers, tasks, distillation and domain terms against other statements of their definitions.

Values and gradients at three batch sizes in float64, float32 and (values) under bfloat16 autocast.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.regularizers import RegularFaceRegularizer
from torch import Tensor

from metricid.losses.center import contrastive_center_loss, island_loss
from metricid.losses.dice import dice_loss
from metricid.losses.distillation import (
    embedding_distillation_loss,
    kl_distillation_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    similarity_preserving_loss,
)
from metricid.losses.domain import domain_loss, gan_discriminator_loss, gan_generator_loss
from metricid.losses.functional import center_loss
from metricid.losses.regression import huber_loss, mae_loss, mse_loss, smooth_l1_loss
from metricid.losses.regularisers import koleo_loss, norm_loss, uniformity_loss, zero_mean_loss
from metricid.losses.weights import (
    l1_penalty,
    l2_penalty,
    orthogonality_loss,
    regularface,
    separation_loss,
)

CLASSES, WIDTH = 10, 6


@dataclass
class Batch:
    """What the cases draw from; all that may have a gradient is in `floats`."""

    x: Tensor  # [B, D]
    z: Tensor  # [B, D], another one
    w: Tensor  # [C, D]
    i: Tensor  # [B, C, 3], scores of images of three places
    y: Tensor  # [B]
    places: Tensor  # [B, 3] int64
    known: Tensor  # [B, D] bool
    seen: Tensor  # [B, 3] bool

    @classmethod
    def draw(cls, size: int, dtype: torch.dtype) -> "Batch":
        generator = torch.Generator().manual_seed(size)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

        x, z, w, i = (
            normal(size, WIDTH),
            normal(size, WIDTH),
            normal(CLASSES, WIDTH),
            normal(size, CLASSES, 3),
        )
        y = torch.randint(0, CLASSES, (size,), generator=generator)
        places = torch.randint(0, CLASSES, (size, 3), generator=generator)
        known = torch.rand(size, WIDTH, generator=generator) < 0.7
        seen = torch.rand(size, 3, generator=generator) < 0.6
        return cls(x, z, w, i, y, places, known, seen)

    def floats(self) -> tuple[Tensor, ...]:
        return self.x, self.z, self.w, self.i

    def in_float64(self) -> "Batch":
        floats = [t.detach().double().requires_grad_() for t in self.floats()]
        return Batch(*floats, self.y, self.places, self.known, self.seen)


def squared_gaps(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] - b[None]).square().sum(dim=-1)


def contrastive_center_oracle(b: Batch) -> Tensor:
    gaps = squared_gaps(b.x, b.w)
    own = F.one_hot(b.y, CLASSES).bool()
    return 0.5 * (gaps[own] / (gaps.masked_fill(own, 0).sum(dim=1) + 2.0)).mean()


def island_oracle(b: Batch) -> Tensor:
    pairs = [
        F.cosine_similarity(b.w[j], b.w[k], dim=0) + 1
        for j in range(CLASSES)
        for k in range(CLASSES)
        if j != k
    ]
    return 0.5 * (b.x - b.w[b.y]).square().sum(dim=1).mean() + 10 * torch.stack(pairs).sum()


def koleo_oracle(b: Batch) -> Tensor:
    z = F.normalize(b.x, dim=1)
    nearest = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist").detach()
    nearest.fill_diagonal_(9)
    near = nearest.argmin(dim=1)
    return -torch.stack([(z[i] - z[j]).norm().add(1e-8).log() for i, j in enumerate(near)]).mean()


def dice_oracle(p: Tensor, g: Tensor, keep: Tensor, squared: bool = True) -> Tensor:
    p, g = p[keep], g[keep]
    below = (p**2).sum() + (g**2).sum() if squared else p.sum() + g.sum()
    return 1 - (2 * (p * g).sum() + 1) / (below + 1)


def binary_dice_oracle(b: Batch) -> Tensor:
    p, g = b.x.sigmoid(), (b.z > 0).to(b.x.dtype)
    lost = [dice_oracle(p[n], g[n], keep) for n, keep in enumerate(b.known) if keep.any()]
    return torch.stack(lost).mean()


def multiclass_dice_oracle(b: Batch) -> Tensor:
    p = b.i.softmax(dim=1)
    lost = []
    for n, keep in enumerate(b.seen):
        if keep.any():
            g = [(b.places[n] == c).to(p.dtype) for c in range(CLASSES)]
            lost.append(torch.stack([dice_oracle(p[n, c], g[c], keep, False) for c in range(CLASSES)]).mean())
    return torch.stack(lost).mean()


def generalised_dice_oracle(b: Batch) -> Tensor:
    p = b.i.softmax(dim=1)
    lost = []
    for n in range(len(p)):
        sizes = [int((b.places[n] == c).sum()) for c in range(CLASSES)]
        most = max(1 / s**2 for s in sizes if s)
        above = below = torch.ones((), dtype=p.dtype)
        for c, s in enumerate(sizes):
            g = (b.places[n] == c).to(p.dtype)
            weight = 1 / s**2 if s else most
            above = above + 2 * weight * (p[n, c] * g).sum()
            below = below + weight * (p[n, c].sum() + s)
        lost.append(1 - above / below)
    return torch.stack(lost).mean()


def rkd_distance_oracle(b: Batch) -> Tensor:
    s, t = torch.pdist(b.x), torch.pdist(b.z.detach())
    return F.smooth_l1_loss(s / s.mean(), t / t.mean())


def rkd_angle_at(b: Batch, j: int) -> Tensor:
    """The part of all angles at one corner; that of a side with itself is 0 for both, and adds nothing."""
    size, cosines = len(b.x), []
    for x in (b.x, b.z.detach()):
        sides = F.normalize(torch.cat([x[:j], x[j + 1 :]]) - x[j], dim=1)
        cosines.append(sides @ sides.T)
    return F.smooth_l1_loss(*cosines, reduction="sum") / (size * (size - 1) * (size - 2))


def rkd_angle_oracle(b: Batch) -> Tensor:
    return torch.stack([rkd_angle_at(b, j) for j in range(len(b.x))]).sum()


def kl_oracle(b: Batch) -> Tensor:
    p, q = (b.z.detach() / 4).softmax(dim=1), (b.x / 4).softmax(dim=1)
    return 16 * (p * (p / q).log()).sum() / len(p)


def similarity_oracle(b: Batch) -> Tensor:
    grams = [F.normalize(a @ a.T, p=2, dim=1) for a in (b.x, b.z.detach())]
    return torch.linalg.matrix_norm(grams[1] - grams[0]) ** 2 / len(b.x) ** 2


def domain_gan_oracle(b: Batch, form: str) -> Tensor:
    parts = []
    for c in b.y.unique():
        real, fake = b.x_logits[b.y == c, c], b.x_logits[b.y != c, c]  # type: ignore[attr-defined]
        if form == "hinge":
            parts.append((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean())
        else:
            parts.append(-real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean())
    return torch.stack(parts).mean()


def with_logits(b: Batch) -> Tensor:
    """[B, C], one score of a sample for each class."""
    b.x_logits = b.i[:, :, 0]  # type: ignore[attr-defined]
    return b.x_logits  # type: ignore[attr-defined, no-any-return]


def gan_oracle(b: Batch) -> Tensor:
    bce = F.binary_cross_entropy_with_logits
    return bce(b.x, torch.ones_like(b.x)) + bce(b.z, torch.zeros_like(b.z))


def chosen(function: Callable[..., Tensor], **options: float) -> Callable[[Batch], Tensor]:
    return lambda b: function(b.x[b.known], b.z[b.known], **options)


Case = tuple[Callable[[Batch], Tensor], Callable[[Batch], Tensor]]
CASES: dict[str, Case] = {
    "center": (
        lambda b: center_loss(b.x, b.y, b.w),
        lambda b: F.mse_loss(b.x, b.w[b.y], reduction="sum") / (2 * len(b.x)),
    ),
    "contrastive_center": (
        lambda b: contrastive_center_loss(b.x, b.y, b.w, delta=2.0),
        contrastive_center_oracle,
    ),
    "island": (lambda b: island_loss(b.x, b.y, b.w), island_oracle),
    "norm": (
        lambda b: norm_loss(b.x, b.w[0, 0]),
        lambda b: 0.5 * torch.stack([(v.dot(v).sqrt() - b.w[0, 0]) ** 2 for v in b.x]).mean(),
    ),
    "zero_mean": (lambda b: zero_mean_loss(b.x), lambda b: (b.x @ b.x.T).mean()),
    "zero_mean_vector": (
        lambda b: zero_mean_loss(b.x, of="vector"),
        lambda b: torch.stack([v.sum().abs() for v in b.x]).mean(),
    ),
    "uniformity": (
        lambda b: uniformity_loss(b.x, t=3.0),
        lambda b: torch.pdist(F.normalize(b.x, dim=1)).square().mul(-3).exp().mean().log(),
    ),
    "koleo": (lambda b: koleo_loss(b.x), koleo_oracle),
    "regularface": (lambda b: regularface(b.x), lambda b: RegularFaceRegularizer()(b.x)),
    "separation": (lambda b: separation_loss(b.x), lambda b: (1 / (1 + torch.pdist(b.x))).mean()),
    "separation_blocks": (
        lambda b: separation_loss(b.x, block=3 * len(b.x)),
        lambda b: (1 / (1 + torch.pdist(b.x))).mean(),
    ),
    "energy": (
        lambda b: separation_loss(b.w, form="energy"),
        lambda b: (torch.pdist(F.normalize(b.w, dim=1)) ** -2).mean(),
    ),
    "log_energy": (
        lambda b: separation_loss(b.w, form="energy", power=0.0),
        lambda b: -torch.pdist(F.normalize(b.w, dim=1)).log().mean(),
    ),
    "orthogonality": (
        lambda b: orthogonality_loss(b.x),
        lambda b: sum(
            (b.x[:, i].dot(b.x[:, j]) - int(i == j)) ** 2 for i in range(WIDTH) for j in range(WIDTH)
        ),
    ),
    "l1": (lambda b: l1_penalty(b.x, b.w), lambda b: b.x.norm(p=1) + b.w.norm(p=1)),
    "l2": (lambda b: l2_penalty(b.x, b.i), lambda b: (b.x.norm() ** 2 + b.i.norm() ** 2) / 2),
    "mse": (lambda b: mse_loss(b.x, b.z, b.known), chosen(F.mse_loss)),
    "mae": (lambda b: mae_loss(b.x, b.z, b.known), chosen(F.l1_loss)),
    "huber": (lambda b: huber_loss(b.x, b.z, b.known, delta=0.7), chosen(F.huber_loss, delta=0.7)),
    "smooth_l1": (
        lambda b: smooth_l1_loss(b.x, b.z, b.known, beta=0.4),
        chosen(F.smooth_l1_loss, beta=0.4),
    ),
    "dice": (lambda b: dice_loss(b.x, b.z > 0, b.known), binary_dice_oracle),
    "dice_multiclass": (
        lambda b: dice_loss(b.i, b.places, b.seen, form="multiclass", squared=False),
        multiclass_dice_oracle,
    ),
    "dice_generalised": (
        lambda b: dice_loss(b.i, b.places, form="generalised"),
        generalised_dice_oracle,
    ),
    "distil_mse": (
        lambda b: embedding_distillation_loss(b.x, b.z),
        lambda b: F.mse_loss(b.x, b.z.detach()),
    ),
    "distil_l1": (
        lambda b: embedding_distillation_loss(b.x, b.z, form="l1", normalize=True),
        lambda b: F.l1_loss(F.normalize(b.x), F.normalize(b.z.detach())),
    ),
    "distil_smooth_l1": (
        lambda b: embedding_distillation_loss(b.x, b.z, form="smooth_l1"),
        lambda b: F.smooth_l1_loss(b.x, b.z.detach()),
    ),
    "distil_cosine": (
        lambda b: embedding_distillation_loss(b.x, b.z, form="cosine"),
        lambda b: F.cosine_embedding_loss(b.x, b.z.detach(), torch.ones(len(b.x))),
    ),
    "rkd_distance": (lambda b: rkd_distance_loss(b.x, b.z), rkd_distance_oracle),
    "rkd_angle": (lambda b: rkd_angle_loss(b.x, b.z, block=1 << 22), rkd_angle_oracle),
    "distil_logits": (lambda b: kl_distillation_loss(b.x, b.z), kl_oracle),
    "similarity": (lambda b: similarity_preserving_loss(b.x, b.z), similarity_oracle),
    "gan_discriminator": (lambda b: gan_discriminator_loss(b.x, b.z), gan_oracle),
    "gan_discriminator_hinge": (
        lambda b: gan_discriminator_loss(b.x, b.z, form="hinge"),
        lambda b: (1 - b.x).clamp_min(0).mean() + (1 + b.z).clamp_min(0).mean(),
    ),
    "gan_generator": (lambda b: gan_generator_loss(b.x), lambda b: (1 - b.x.sigmoid()).log().mean()),
    "gan_generator_non_saturating": (
        lambda b: gan_generator_loss(b.x, form="non_saturating"),
        lambda b: F.binary_cross_entropy_with_logits(b.x, torch.ones_like(b.x)),
    ),
    "gan_generator_hinge": (lambda b: gan_generator_loss(b.x, form="hinge"), lambda b: -b.x.mean()),
    "domain_softmax": (
        lambda b: domain_loss(with_logits(b), b.y),
        lambda b: -with_logits(b).softmax(dim=1)[torch.arange(len(b.y)), b.y].log().mean(),
    ),
    "domain_minimax": (
        lambda b: domain_loss(with_logits(b), b.y, form="minimax"),
        lambda b: (with_logits(b), domain_gan_oracle(b, "minimax"))[1],
    ),
    "domain_hinge": (
        lambda b: domain_loss(with_logits(b), b.y, form="hinge"),
        lambda b: (with_logits(b), domain_gan_oracle(b, "hinge"))[1],
    ),
}


# The oracle of the angles would hold the graph of all 512^3; it has a test of its own.
SIZES = [(name, size) for name in CASES for size in (8, 64, 512) if (name, size) != ("rkd_angle", 512)]


def apart(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_value_and_gradient_agree_with_the_definition(name: str, size: int) -> None:
    loss, oracle = CASES[name]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        batch = Batch.draw(size, dtype)
        wide = batch.in_float64()
        value, expected = loss(batch), oracle(wide)
        assert value.dtype == dtype
        assert apart(value.detach(), expected.detach()) < tolerance
        slopes = torch.autograd.grad(value, batch.floats(), allow_unused=True, materialize_grads=True)
        wanted = torch.autograd.grad(expected, wide.floats(), allow_unused=True, materialize_grads=True)
        assert any(slope.abs().max() > 0 for slope in wanted)
        for slope, want in zip(slopes, wanted, strict=True):
            assert apart(slope, want) < tolerance if want.any() else not slope.any()


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_under_bfloat16_autocast_within_two_percent(name: str, size: int) -> None:
    loss, oracle = CASES[name]
    batch = Batch.draw(size, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(batch)
    assert value.dtype == torch.float32
    assert apart(value.detach(), oracle(batch.in_float64()).detach()) < 0.02
    slopes = torch.autograd.grad(value, batch.floats(), allow_unused=True, materialize_grads=True)
    assert all(slope.isfinite().all() for slope in slopes)


def test_the_angles_of_a_large_batch_agree_with_the_definition_corner_by_corner() -> None:
    wide = Batch.draw(512, torch.float64)
    wanted, slope = torch.zeros(()), torch.zeros_like(wide.x)
    for corner in range(512):
        part = rkd_angle_at(wide, corner)
        wanted = wanted + part.detach()
        slope += torch.autograd.grad(part, wide.x)[0]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        batch = Batch.draw(512, dtype)  # the same numbers, rounded for bfloat16 alone
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            value = CASES["rkd_angle"][0](batch)
        assert apart(value.detach(), wanted) < tolerance
        (found,) = torch.autograd.grad(value, batch.x)
        assert found.isfinite().all()
        assert dtype == torch.bfloat16 or apart(found, slope) < tolerance


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name: str) -> None:
    batch = Batch.draw(5, torch.float64)

    def of(*floats: Tensor) -> Tensor:
        return CASES[name][0](Batch(*floats, batch.y, batch.places, batch.known, batch.seen))

    teacher_has_no_gradient = name.startswith(("distil", "rkd", "similarity"))
    batch.z.requires_grad_(not teacher_has_no_gradient)
    assert torch.autograd.gradcheck(of, batch.floats())

"""Domain-adversarial branch: embeddings that do not tell the camera or group, and GAN terms."""

import math
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metricid.losses.adversarial import ADVERSARIAL
from metricid.losses.checks import check_batch, check_options, compute_dtype, no_autocast

GanForm = Literal["minimax", "hinge"]
GeneratorForm = Literal["minimax", "non_saturating", "hinge"]
DomainForm = Literal["softmax", "minimax", "hinge"]


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """x itself, whose gradient is multiplied by -strength (Ganin and Lempitsky, ICML 2015)."""
    return _Reversed.apply(x, strength)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


def reversal_strength(progress: float, *, gamma: float = 10.0) -> float:
    """How strong the reversal is at a share of the training (Ganin and Lempitsky, ICML 2015).

    2 / (1 + exp(-gamma p)) - 1: 0 at the start, where the branch knows nothing yet, near 1 at the end.

    Args:
        progress: p in [0, 1].
        gamma: > 0.

    Example:
        >>> round(reversal_strength(0.1), 3)
        0.462
    """
    return math.tanh(0.5 * gamma * progress)


def gan_discriminator_loss(real: Tensor, fake: Tensor, *, form: GanForm = "minimax") -> Tensor:
    """What a discriminator minimises.

    'minimax': -E log sigmoid(real) - E log(1 - sigmoid(fake)) (Goodfellow et al., NeurIPS 2014, eq. 1).
    'hinge': E max(0, 1 - real) + E max(0, 1 + fake) (Lim and Ye, arXiv 1705.02894; Miyato et al., ICLR 2018).

    Args:
        real: logits of any shape, any float dtype.
        fake: logits of any shape; a side without entries adds 0.
        form: as above.

    Returns:
        Scalar.
    """
    dtype = compute_dtype(real, fake)
    with no_autocast(real):
        return _mean(_wrong(real.to(dtype), form)) + _mean(_wrong(-fake.to(dtype), form))


def gan_generator_loss(fake: Tensor, *, form: GeneratorForm = "minimax") -> Tensor:
    """What a generator minimises against a fixed discriminator.

    'minimax': E log(1 - sigmoid(fake)), 'non_saturating': -E log sigmoid(fake) (both Goodfellow et al.,
    NeurIPS 2014, section 3), 'hinge': -E fake.

    Args:
        fake: logits of any shape, any float dtype.
        form: as above.

    Returns:
        Scalar; 0 with a graph if there is no entry.
    """
    with no_autocast(fake):
        z = fake.to(compute_dtype(fake))
        if form == "minimax":
            return -_mean(F.softplus(z))
        return _mean(F.softplus(-z)) if form == "non_saturating" else -_mean(z)


def domain_loss(logits: Tensor, domains: Tensor, *, form: DomainForm = "softmax") -> Tensor:
    """How badly domains are told apart.

    'softmax': cross-entropy (Ganin and Lempitsky, ICML 2015). 'minimax' and 'hinge':
    `gan_discriminator_loss` of each domain's logit, its own samples as real, all others as fake; mean over
    the domains of which the batch has a sample.

    Args:
        logits: [B, N], any float dtype.
        domains: [B] int64 in [0, N).
        form: as above.

    Returns:
        Scalar.

    Raises:
        ValueError: shapes disagree, or a domain is outside [0, N).
    """
    check_batch(logits, domains, num_classes=logits.shape[1])
    with no_autocast(logits):
        z = logits.to(compute_dtype(logits))
        if form == "softmax":
            return F.cross_entropy(z, domains)
        own = F.one_hot(domains, z.shape[1]).bool()
        wrong = _wrong(torch.where(own, z, -z), form)
        sides = [(wrong * side).sum(dim=0) / side.sum(dim=0).clamp_min(1) for side in (own, ~own)]
        present = own.any(dim=0)
        return ((sides[0] + sides[1]) * present).sum() / present.sum()


def _wrong(score: Tensor, form: GanForm | DomainForm) -> Tensor:
    """The loss of a score that ought to be large."""
    return F.relu(1 - score) if form == "hinge" else F.softplus(-score)


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(values.numel(), 1)


@ADVERSARIAL.register("domain_adversarial")
class DomainAdversarialLoss(nn.Module):
    """A small network guesses the domain behind a reversed gradient, so that embeddings forget it.

    The network learns to tell the cameras (or groups) apart; the embedder gets minus its gradient.
    `domain_loss` has the formulas (Ganin and Lempitsky, ICML 2015).

    Args:
        num_domains: N >= 2, number of cameras or groups.
        embedding_dim: D.
        hidden: widths of the hidden layers; the paper's for photos.
        form: 'softmax' (the paper), 'minimax' or 'hinge' (one GAN term per domain).
        gamma: how fast the reversal grows with the progress of the training.
    """

    kind: ClassVar[str] = "adversarial"
    formula: ClassVar[str] = "-log softmax(D(R(x)))_d, with dR/dx = -lambda I"
    use: ClassVar[str] = "embeddings of one camera or group cluster; weight about 0.1"
    source: ClassVar[str] = "Ganin and Lempitsky, ICML 2015"
    pairwise: ClassVar[bool] = False

    def __init__(
        self,
        num_domains: int,
        embedding_dim: int,
        *,
        hidden: tuple[int, ...] = (1024, 1024),
        form: DomainForm = "softmax",
        gamma: float = 10.0,
    ):
        super().__init__()
        check_options(
            num_domains=(num_domains >= 2, f"must be at least 2, got {num_domains}"),
            embedding_dim=(embedding_dim >= 1, f"must be at least 1, got {embedding_dim}"),
            hidden=(all(width >= 1 for width in hidden), f"must be widths of at least 1, got {hidden}"),
            form=(
                form in ("softmax", "minimax", "hinge"),
                f"must be 'softmax', 'minimax' or 'hinge', got {form!r}",
            ),
            gamma=(0 < gamma < math.inf, f"must be positive, got {gamma}"),
        )
        self.num_domains = num_domains
        self.embedding_dim = embedding_dim
        self.form: DomainForm = form
        self.gamma = gamma
        widths = [embedding_dim, *hidden, num_domains]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])

    def forward(self, embeddings: Tensor, domains: Tensor, progress: float = 1.0) -> Tensor:
        """Loss of embeddings [B, D] whose domains [B] are int64 in [0, N).

        Args:
            embeddings: any float dtype; their gradient is that of the loss times -lambda(progress).
            domains: camera or group of each sample, numbered from 0.
            progress: share of the training that is done, in [0, 1].
        """
        check_batch(embeddings, domains, num_classes=self.num_domains, dim=self.embedding_dim)
        with no_autocast(embeddings):
            x = embeddings.to(next(self.network.parameters()).dtype)
            reversed_x = reverse_gradient(x, reversal_strength(progress, gamma=self.gamma))
            return domain_loss(self.network(reversed_x), domains, form=self.form)

    def extra_repr(self) -> str:
        return f"form={self.form}, gamma={self.gamma}"


@ADVERSARIAL.register("gan_discriminator")
class GanDiscriminatorLoss(nn.Module):
    """What a discriminator of real and fake minimises; `gan_discriminator_loss` has the formulas.

    Args:
        form: 'minimax' or 'hinge'.
    """

    kind: ClassVar[str] = "adversarial"
    formula: ClassVar[str] = "-E log sigmoid(D(real)) - E log(1 - sigmoid(D(fake)))"
    use: ClassVar[str] = "a discriminator with steps of its own, such as target against source domain"
    source: ClassVar[str] = "Goodfellow et al., NeurIPS 2014; hinge: Lim and Ye, arXiv 1705.02894"

    def __init__(self, *, form: GanForm = "minimax"):
        super().__init__()
        check_options(form=(form in ("minimax", "hinge"), f"must be 'minimax' or 'hinge', got {form!r}"))
        self.form: GanForm = form

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Loss of the logits of real and of fake samples, of any shapes."""
        return gan_discriminator_loss(real, fake, form=self.form)

    def extra_repr(self) -> str:
        return f"form={self.form}"


@ADVERSARIAL.register("gan_generator")
class GanGeneratorLoss(nn.Module):
    """What the embedder minimises against such a discriminator; `gan_generator_loss` has the formulas.

    Args:
        form: 'minimax', 'non_saturating' or 'hinge'.
    """

    kind: ClassVar[str] = "adversarial"
    formula: ClassVar[str] = "E log(1 - sigmoid(D(fake)))"
    use: ClassVar[str] = "beside gan_discriminator; non_saturating where the gradient fades"
    source: ClassVar[str] = "Goodfellow et al., NeurIPS 2014; hinge: Lim and Ye, arXiv 1705.02894"

    def __init__(self, *, form: GeneratorForm = "minimax"):
        super().__init__()
        forms = ("minimax", "non_saturating", "hinge")
        check_options(form=(form in forms, f"must be 'minimax', 'non_saturating' or 'hinge', got {form!r}"))
        self.form: GeneratorForm = form

    def forward(self, fake: Tensor) -> Tensor:
        """Loss of the logits of fake samples, of any shape."""
        return gan_generator_loss(fake, form=self.form)

    def extra_repr(self) -> str:
        return f"form={self.form}"

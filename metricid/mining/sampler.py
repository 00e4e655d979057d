"""Batches of identities that the model now confuses."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metricid.errors import InputError
from metricid.mining.by_epoch import ByEpoch
from metricid.mining.checks import check_enough, checked_labels, described
from metricid.mining.compose import Composed, Epoch, HardShare
from metricid.mining.course import Course
from metricid.mining.guard import alike_pairs
from metricid.mining.instances import Images, Walk, part_of
from metricid.mining.neighbours import EXACT_UP_TO, Neighbours, check_table
from metricid.mining.offline import Join, OfflineOptions, OfflineTables, search_embeddings
from metricid.mining.options import check_options
from metricid.mining.schedule import TableSchedule
from metricid.mining.tables import ImageTable, Sources

__all__ = ["HardIdentitySampler"]

DELAY = 100  # batches for a search, by default

_TAG = 0x1F3


class HardIdentitySampler:
    """P identities with K images each: seeds, and for each seed some of the identities most like it.

    Every identity is in every epoch, since the seeds walk through random permutations of all identities. A
    table of nearest identities, renewed every `refresh` batches beside the training, says who is like whom.
    The joined batch of W processes is the batch of one process with W times as many identities.

    Batches are numbered through all epochs. They depend on the seed and on the tables alone, which come into
    force at fixed numbers; `state_dict` holds what a continued run needs to draw the same ones.

    Example:
        >>> labels = np.repeat(np.arange(6), 4)
        >>> sampler = HardIdentitySampler(labels, identities=2, images=2, refresh=None)
        >>> ring = torch.tensor([[1], [0], [3], [2], [5], [4]], dtype=torch.int32)
        >>> sampler.use(Neighbours(ring, torch.full((6, 1), 0.5, dtype=torch.float16)))
        >>> all(set(labels[b] // 2) == {labels[b][0] // 2} for b in sampler.batches(epoch=0))
        True
    """

    def __init__(
        self,
        labels: NDArray[np.generic],
        identities: int = 16,
        images: int = 4,
        epoch: Literal["images", "identities"] = "images",
        vectors: Literal["mean", "classifier", "centers"] = "mean",
        share: float = 0.5,
        share_start: float = 0.0,
        ramp: int = 0,
        warmup: int | None = None,
        neighbours: int = 50,
        temperature: float = 0.1,
        refresh: int | None = 1000,
        delay: int | None = None,
        max_repeat: float = 4.0,
        guard: float | None = 0.95,
        far_share: float = 0.0,
        exact_up_to: int = EXACT_UP_TO,
        offline: dict[str, int] | None = None,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        """
        Args:
            labels: [N] the identity of each image; row i of the vectors is that of the i-th smallest label.
            identities: P, different identities in this rank's batch.
            images: K, images of each; an identity with fewer repeats some.
            epoch: `"images"`: an epoch has about N images, and at least what everyone's turn as a seed
                takes; `"identities"`: just that, everyone once as a seed.
            vectors: what the caller passes to `after_step`; read by the training, not here.
            share: of a batch's identities that are neighbours of others in it, in [0, 1).
            share_start: that share when the warm-up ends.
            ramp: batches from the end of the warm-up over which the share goes evenly from `share_start`
                to `share`.
            warmup: batches that are random; if None one epoch, or 0 where nothing is searched (`refresh` and
                `offline` None). Those before the first table are random, too.
            neighbours: k, those most like an identity, among which hard ones are drawn.
            temperature: of that draw: weights are softmax(cosine / temperature), from 1e-6 to 1e6; 0
                takes the nearest.
            refresh: batches between two searches; None: only tables given to `use`.
            delay: batches from the start of a search to the first batch that its table shapes. A search that
                takes longer is waited for. If None 100, or `refresh` where that is less, and the first search
                begins when half of the warm-up is over, or later.
            max_repeat: no identity is in more batches of an epoch than this times the mean, rounded up;
                from 2 to 1e6.
            guard: identities more alike than this cosine, in (-1, 1], are probably one person and are not put
                together on purpose; None for no guard.
            far_share: of an identity's images in a batch that come from the farthest quarter of its images,
                once `set_distances` or `use_embeddings` was called; reached on average where that is no whole
                number of images.
            exact_up_to: most identities, or images, for an exact search on the CPU.
            offline: the embeddings of all images are wanted before every `every`-th epoch after the warm-up
                (`use_embeddings`); a seed then stands beside images that its own are confused with, drawn
                among the `images` most like each. None: identities alone decide.
            seed: with the tables it determines everything.
            rank: this process, in [0, world_size).
            world_size: processes; no identity is in the batches of two of them in the same step.

        Raises:
            InputError: an option outside its range, or fewer identities than P x world_size.
        """
        options: dict[str, Any] = {"identities": identities, "images": images, "epoch": epoch}
        options |= {"vectors": vectors, "share": share, "share_start": share_start, "ramp": ramp}
        options |= {"warmup": warmup, "neighbours": neighbours, "temperature": temperature}
        options |= {"refresh": refresh, "delay": delay, "max_repeat": max_repeat, "guard": guard}
        options |= {"far_share": far_share, "exact_up_to": exact_up_to, "seed": seed}
        check_options(options)
        labels = checked_labels(labels, rank, world_size)
        self.offline = None if offline is None else OfflineOptions.read(offline)
        own = options | {"offline": self.offline and asdict(self.offline), "world_size": world_size}
        self._options = {name: v.item() if isinstance(v, np.generic) else v for name, v in own.items()}
        self.identities, self.images, self.batch_size = identities, images, identities * images
        self.vectors, self.seed, self.rank, self.world_size = vectors, seed, rank, world_size
        self._seed = seed & 0xFFFFFFFFFFFFFFFF
        self._groups = Images(labels)
        self._known = len(self._groups.names)
        self._joined = identities * world_size
        check_enough(self._known, identities, world_size)
        self._temperature, self.far = temperature, part_of(images, far_share)
        self._hard = HardShare(self._joined, share_start, share, ramp)
        # Seeds in every batch, whatever the share is at the time: the length of an epoch must not change.
        seeds = self._joined - self._hard.most
        self._batches = -(-self._known // seeds)
        if epoch == "images":
            self._batches = max(self._batches, -(-len(labels) // (self._joined * images)))
        self._most = int(np.ceil(max_repeat * self._batches * self._joined / self._known))
        if warmup is None:
            warmup = self._batches if refresh or self.offline else 0
        self._warmup = warmup
        # The first search ends with the warm-up, and begins when some identities have been seen.
        soonest = 1 if delay else max(-(-warmup // 2), 1)
        delay = delay or min(refresh or 0, DELAY)
        self.delay = delay if refresh is not None else None
        self._schedule = TableSchedule(
            refresh,
            delay,
            max(self._warmup - delay, soonest),
            k=neighbours,
            identities=self._known,
            guard=guard,
            exact_up_to=exact_up_to,
        )
        self.guard = guard
        self._neighbours, self._exact_up_to = neighbours, exact_up_to
        self._done = self._next = 0
        self._course = Course(self._fresh(0))
        self._ranks: ByEpoch[NDArray[np.int32]] = ByEpoch("distances of the images")
        self._image_tables: ByEpoch[ImageTable] = ByEpoch("neighbours of the images")

    @property
    def random_batches(self) -> int | None:
        """Batches before the first that a table may shape; None where only tables of one's own are used."""
        firsts = []
        if self._schedule.every is not None:
            firsts.append(max(self._warmup, self._schedule.first + self._schedule.delay))
        if self.offline is not None:
            firsts.append(-(-self._warmup // self._batches) * self._batches)
        return min(firsts, default=None)

    def num_batches(self, epoch: int) -> int:
        """Batches in an epoch, the same on all ranks and in all epochs."""
        return self._batches

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        """The rest of the present epoch, or the next one: what `DataLoader(batch_sampler=...)` takes."""
        # A generator, which does nothing before it is asked: a loader with workers calls this twice an epoch.
        epoch, start = divmod(max(self._done, self._next), self._batches)
        self._next = (epoch + 1) * self._batches
        yield from (batch.tolist() for batch in self.batches(epoch, start))

    def batches(self, epoch: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """This rank's batches ([P*K] int64 dataset rows, identity by identity), without the first `start`.

        Raises:
            ValueError: there is no such epoch, or no such batch in it.
            RuntimeError: a batch needs neighbours whose search `after_step` has not begun, or a table that
                is no longer kept.
        """
        if epoch < 0 or not 0 <= start <= self._batches:
            raise ValueError(
                f"an epoch is 0 or more, and has batches 0 to {self._batches - 1}; there is no batch {start} "
                f"of epoch {epoch}"
            )
        state = self._enter(epoch, start)
        course, walk = self._course, self._walk(epoch)
        mine = slice(self.rank * self.identities, (self.rank + 1) * self.identities)
        for batch in range(start, self._batches):
            joined = self._compose(state, course, batch, walk)
            identities = joined.identities[mine]
            yield walk.show(identities, state.counts[identities] - 1, joined.shown).ravel()

    def after_step(self, done: int, vectors: Tensor | Callable[[], Tensor] | None = None) -> None:
        """To be called after every batch, on all ranks; starts a search where one is due.

        Args:
            done: batches done since the training began, `epoch * num_batches(epoch) + batch`.
            vectors: [C, D] one row per identity, or a function that returns it, called only when needed.
                The same on all ranks. None for a sampler with `refresh=None`.

        Raises:
            ValueError: the number of rows is not that of the identities, or none are given to a search.
        """
        self._done = done
        self._drop_before(self._used)
        if self._schedule.due(done):
            if vectors is None:
                raise ValueError("a search for neighbours is due; give after_step one vector per identity")
            self._schedule.begin(done, vectors() if callable(vectors) else vectors)

    def use(self, neighbours: Neighbours, epoch: int = 0) -> None:
        """Puts a table of one's own in force from an epoch on; for a sampler with `refresh=None`.

        Raises:
            ValueError: the sampler searches itself, or the table has not one row per identity.
        """
        if self._schedule.every is not None:
            raise ValueError("a sampler that takes tables of one's own needs refresh=None")
        self._schedule.put(epoch * self._batches, neighbours)

    def set_distances(self, distances: NDArray[np.floating]) -> None:
        """Says how far each image is from its identity's center; in force from the next epoch that begins.

        Args:
            distances: [N], finite.

        Raises:
            ValueError: another shape, or a value that is not finite.
        """
        distances = np.asarray(distances)
        number = len(self._groups.owners)
        if distances.shape != (number,) or not np.isfinite(distances).all():
            raise ValueError(f"distances must be [{number}] finite values, one per image")
        self._ranks.put(self._coming, self._groups.far_ranks(distances))

    def offline_due(self, epoch: int) -> bool:
        """Whether `use_embeddings` is to be called before the first batch of an epoch is drawn."""
        if self.offline is None or self._image_tables.begins(epoch):
            return False
        first = -(-self._warmup // self._batches)
        return epoch >= first and (epoch - first) % self.offline.every == 0

    def use_embeddings(
        self, vectors: Tensor, *, normalized: bool = False, join: Join | None = None
    ) -> OfflineTables:
        """Searches the embeddings of all images; what is found is in force from the next epoch that begins.

        That is: whom each image is confused with, the neighbours of each identity, and which images are far
        from their identity's center. To be called on all ranks, with the same embeddings.

        Args:
            vectors: [N, D], any float dtype; a row of zeros for an image that could not be embedded. The
                search runs on their device.
            normalized: the rows have length 1, or 0, and are used in place, which saves a copy.
            join: joins the parts of all ranks, in their order, along the first dimension; each rank then
                searches for its part of the images. None: each searches for all.

        Raises:
            ValueError: the sampler has no `offline`, another number of rows, or a value that is not finite.
        """
        number = len(self._groups.owners)
        if self.offline is None:
            raise ValueError("a sampler that takes embeddings of all images needs offline={}")
        if not isinstance(vectors, Tensor) or vectors.dim() != 2 or len(vectors) != number:
            raise ValueError(
                f"embeddings must be a tensor [{number}, D], one row per image, not {described(vectors)}"
            )
        mine = torch.arange(number).tensor_split(self.world_size)[self.rank]
        found = search_embeddings(
            vectors,
            torch.from_numpy(self._groups.owners),
            self.offline,
            neighbours=self._neighbours,
            exact_up_to=self._exact_up_to,
            normalized=normalized,
            share=None if join is None else (mine.to(vectors.device), join),
        )
        epoch = self._coming
        self._image_tables.put(epoch, self._image_table(found.images))
        self._schedule.renew(epoch * self._batches, found.identities)
        if self.far:
            self.set_distances(found.distances)
        return found

    def suspects(self) -> tuple[Tensor, Tensor]:
        """The pairs of identities above the guard in the table in force, see `alike_pairs`."""
        found = self._schedule.latest(self._used)
        if found is None or self.guard is None:
            return torch.empty(0, 2, dtype=torch.int64), torch.empty(0)
        return alike_pairs(found[1], self.guard)

    def status(self) -> dict[str, float | None]:
        """For the log, as of the last `after_step`.

        Returns:
            `hard_share` reached in that batch; of the table behind it `table_age`, batches since its vectors
            were taken, `search_seconds` and `search_recall`; `search_waited_seconds` so far; `offline_age`,
            batches since the embeddings of all images were taken. None: not yet.
        """
        found = self._schedule.latest(self._used)
        share = None
        if self._done and self._used // self._batches == self._course.start.epoch:
            share = self._course.hard_share(self._used % self._batches)
        return {
            "hard_share": share,
            "table_age": None if found is None else self._used - found[0],
            "search_seconds": None if found is None else found[1].seconds,
            "search_recall": None if found is None else found[1].recall,
            "search_waited_seconds": self._schedule.waited_seconds,
            "offline_age": self._offline_age(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What the coming batches depend on besides the options, as of the last `after_step`.

        The same on all ranks. A search under way is waited for, so that its table is in the state. A table
        takes 6 bytes per identity and neighbour, or per image and neighbour with `offline`, and there are two
        at most; the rest 4 bytes per identity, and 8 per image once distances are set.

        Raises:
            RuntimeError: `after_step` lags behind by more than an epoch.
        """
        epoch, batch = divmod(self._done, self._batches)
        if not batch:
            course = Course(self._fresh(epoch))
        elif self._course.reaches(epoch, batch):
            course = self._course
        else:
            raise RuntimeError(
                f"batch {batch} of epoch {epoch} was not drawn; call after_step after every batch"
            )
        self._drop_before(self._done)
        return {
            "options": self._options,
            "done": self._done,
            "course": course.state(batch),
            "schedule": self._schedule.state(),
            "ranks": self._ranks.state(torch.from_numpy),
            "images": self._image_tables.state(lambda table: table.neighbours.state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was called, in a sampler with the same options and labels.

        Raises:
            InputError: it is no such state, or one of other options or of other numbers of identities or
                images.
        """
        if missing := {"done", "course", "schedule", "ranks", "images"} - set(state):
            raise InputError(f"this is no state of a hard_identity sampler: it has no {min(missing)!r}")
        counts = state["course"]["counts"]
        if len(counts) != self._known:
            raise InputError(
                f"the state of the sampler is of {len(counts)} identities, and the data has {self._known}; "
                "restore the data, or start anew"
            )
        stored = state.get("options", {})  # states of before they were kept have none
        other = [name for name, value in self._options.items() if stored.get(name, value) != value]
        if other:
            differing = ", ".join(f"{name} {stored[name]} (here {self._options[name]})" for name in other)
            raise InputError(
                f"the state is of a sampler with {differing}; make this one alike, or start anew"
            )
        self._done, self._next = state["done"], 0
        self._course = Course.load(state["course"], self._seed, self._most)
        self._schedule.load(state["schedule"])
        self._ranks.load(state["ranks"], lambda ranks: ranks.numpy().copy())
        self._image_tables.load(state["images"], lambda table: self._image_table(Neighbours(**table)))

    @property
    def _used(self) -> int:
        """Number of the latest batch that was used."""
        return max(self._done - 1, 0)

    @property
    def _coming(self) -> int:
        """The next epoch that begins."""
        return -(-self._done // self._batches)

    def _image_table(self, neighbours: Neighbours) -> ImageTable:
        check_table(neighbours, len(self._groups.owners), "images")
        return ImageTable(neighbours, self._groups.owners, self.guard)

    def _drop_before(self, done: int) -> None:
        """Lets go of what no batch from `done` on needs."""
        self._schedule.drop_before(done)
        self._ranks.drop_before(done // self._batches)
        self._image_tables.drop_before(done // self._batches)

    def _offline_age(self) -> int | None:
        firsts = [first * self._batches for first, _ in self._image_tables.entries]
        return self._used - max(firsts) if firsts and max(firsts) <= self._used else None

    def _enter(self, epoch: int, start: int) -> Epoch:
        """The composition before a batch, from what was drawn or by composing all before it again."""
        if self._course.reaches(epoch, start):
            state = self._course.before(start)
            # A copy: a batch iterator that is still in use goes on with its own course.
            steps = self._course.steps[: start - self._course.first]
            self._course = Course(self._course.start, self._course.first, steps)
            return state
        state, walk = self._fresh(epoch), self._walk(epoch)
        self._course = Course(self._fresh(epoch))
        for batch in range(start):
            self._compose(state, self._course, batch, walk)
        return state

    def _compose(self, state: Epoch, course: Course, batch: int, walk: Walk) -> Composed:
        """The P*W identities of the joined batch."""
        number = state.epoch * self._batches + batch
        sources, hard = Sources(walk), 0
        if number >= self._warmup:
            table, hard = self._schedule.at(number), self._hard.after(number - self._warmup)
            sources = Sources(walk, self._temperature, table, self._image_tables.at(state.epoch))
        joined = state.compose(batch, self._joined, hard, sources)
        course.add(state, joined.identities, joined.drawn)
        return joined

    def _fresh(self, epoch: int) -> Epoch:
        return Epoch(self._seed, epoch, self._known, self._most)

    def _walk(self, epoch: int) -> Walk:
        rng = np.random.default_rng([self._seed, epoch, _TAG])
        return self._groups.walk(rng, self.images, self.far, self._ranks.at(epoch))

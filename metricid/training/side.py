"""What the terms of an objective read beside images and identities, for one batch after another."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metricid.config import RunConfig
from metricid.data.loader import Batch
from metricid.data.manifest import Manifest
from metricid.losses.term import Side
from metricid.training.columns import Columns
from metricid.training.precision import Precision
from metricid.training.teachers import Teacher, open_teacher


@dataclass(frozen=True)
class SideData:
    """Columns of the training images and teachers for them.

    Attributes:
        device: of the training.
        columns: how their text becomes numbers.
        values: [N, ...] of all training images, by column key.
        teachers: by what the recipe calls them.
    """

    device: torch.device
    columns: Columns = field(default_factory=Columns)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    teachers: Mapping[str, Teacher] = field(default_factory=dict)

    def of(self, batch: Batch, images: Tensor, teachers: Container[str]) -> Side:
        """What belongs to a batch.

        Args:
            batch: its `index` are the rows.
            images: its images on the device.
            teachers: who is asked.
        """
        columns = {
            key: values[batch.index].to(self.device, non_blocking=True) for key, values in self.values.items()
        }
        if batch.masks is not None and self.columns.mask is not None:
            columns[self.columns.mask] = batch.masks.to(self.device, non_blocking=True)
        asked = {name: teacher for name, teacher in self.teachers.items() if name in teachers}
        taught = {name: teacher.of(images, batch.index) for name, teacher in asked.items()}
        return Side(columns=columns, teachers=taught)

    def teacher_widths(self) -> dict[str, int]:
        """The width of each teacher's embedding."""
        return {name: teacher.width for name, teacher in self.teachers.items()}


def build_side(
    config: RunConfig,
    manifest: Manifest,
    label_map: Mapping[str, int],
    device: torch.device,
    precision: Precision,
) -> SideData:
    """Reads the columns and opens the teachers that the objective of a recipe names.

    Args:
        config: the recipe.
        manifest: the training images.
        label_map: identity to class.
        device: of the training.
        precision: of the training.

    Raises:
        InputError: a column or teacher that cannot be used.
    """
    columns = Columns.learn(config.objective, manifest)
    teachers: dict[str, Teacher] = {}
    for options in config.objective:
        name = options.get("teacher")
        if name is not None and name not in teachers:
            terms = [term for term in config.objective if term.get("teacher") == name]
            logits = any(term["loss"] == "logit_distillation" for term in terms)
            known = label_map if logits else None
            with torch.random.fork_rng(devices=[]):  # the student starts as it would without a teacher
                teachers[name] = open_teacher(name, manifest, known, device, precision)
    return SideData(device, columns, columns.encode(manifest), teachers)

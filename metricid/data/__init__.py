"""Images and tables: manifests, sources, layouts, samplers, augmentation, loaders, stored embeddings."""

from metricid.data.dataset import ImageDataset, Sample
from metricid.data.decode import MAX_PIXELS, ImageError, decode_image
from metricid.data.embedding_set import EmbeddingSet
from metricid.data.layouts import LAYOUTS
from metricid.data.loader import Batch, Loader
from metricid.data.manifest import Manifest, check_files
from metricid.data.ordered import iterate_images
from metricid.data.samplers import SAMPLERS, ClassBalancedSampler, PKSampler, Sampler, ShuffleSampler
from metricid.data.sources import FolderSource, ImageSource, TarSource, open_source
from metricid.data.splits import query_gallery, split_identities
from metricid.data.transforms import (
    FaceAugmentation,
    ImageTransform,
    PlainAugmentation,
    ReidAugmentation,
    build_transform,
)

__all__ = [
    "LAYOUTS",
    "MAX_PIXELS",
    "SAMPLERS",
    "Batch",
    "ClassBalancedSampler",
    "EmbeddingSet",
    "FaceAugmentation",
    "FolderSource",
    "ImageDataset",
    "ImageError",
    "ImageSource",
    "ImageTransform",
    "Loader",
    "Manifest",
    "PKSampler",
    "PlainAugmentation",
    "ReidAugmentation",
    "Sample",
    "Sampler",
    "ShuffleSampler",
    "TarSource",
    "build_transform",
    "check_files",
    "decode_image",
    "iterate_images",
    "open_source",
    "query_gallery",
    "split_identities",
]

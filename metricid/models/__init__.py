"""Backbones, pooling, necks: images in, embeddings out."""

from metricid.models.embedder import Embedder, EmbedderOutput, Preprocessing
from metricid.models.pooling import GeM
from metricid.models.weights import load_weights_file

__all__ = ["Embedder", "EmbedderOutput", "GeM", "Preprocessing", "load_weights_file"]

"""What a table says of itself, and what to start a training from: arrays in, figures and reasons out."""

from metricid.advice.figures import Figures, describe
from metricid.advice.noise import NoiseEstimate, estimate_noise
from metricid.advice.plan import Line, Plan
from metricid.advice.rules import advise

__all__ = ["Figures", "Line", "NoiseEstimate", "Plan", "advise", "describe", "estimate_noise"]

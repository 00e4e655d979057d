"""Plots of evaluation results, and the self-contained HTML report."""

from metricid.report.page import People, Report, render
from metricid.report.people import Choice, lay_out, look_at_people
from metricid.report.plots import plot_cmc, plot_result, plot_roc, plot_scores

__all__ = [
    "Choice",
    "People",
    "Report",
    "lay_out",
    "look_at_people",
    "plot_cmc",
    "plot_result",
    "plot_roc",
    "plot_scores",
    "render",
]

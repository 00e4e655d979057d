"""Plots of evaluation results."""

from metricid.report.plots import plot_cmc, plot_result, plot_roc, plot_scores

__all__ = ["plot_cmc", "plot_result", "plot_roc", "plot_scores"]

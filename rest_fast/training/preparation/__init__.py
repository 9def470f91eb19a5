"""Prepared training data from videos: crops, latents and speech features, by stated rules (``docs/data.md``)."""

from rest_fast.training.preparation.prepare import prepare
from rest_fast.training.preparation.rules import RULES, Drop, Report

__all__ = ["RULES", "Drop", "Report", "prepare"]

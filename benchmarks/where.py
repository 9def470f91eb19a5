"""Where a number comes from: see :mod:`rest_fast.latency.where`. Scripts find it beside them."""

from rest_fast.latency.where import accelerator, commit_info, cpu_name, environment

__all__ = ["accelerator", "commit_info", "cpu_name", "environment"]

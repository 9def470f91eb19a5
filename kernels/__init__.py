"""Triton kernels, one folder per op.

Installed as ``rest_fast.kernels`` and imported only by that name: a top-level ``kernels`` is
another project's package.
"""

"""CUDA plugins for TensorRT, and what stands for them where there is no TensorRT.

An operator of this package lives in the ONNX domain `edgekit` and carries a function body of standard operators, so
that every runtime can run a file that uses it. This package imports nothing of edgekit.
"""

from __future__ import annotations

DOMAIN = "edgekit"
"""The ONNX domain of every operator here, and the namespace of its TensorRT plugin."""

ENTRY_POINTS = "edgekit.plugins"
"""The entry point group through which other packages add operators."""

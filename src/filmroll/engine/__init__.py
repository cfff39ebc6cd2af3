"""Inference: the embedded engine that runs a transformers model and speaks the generate protocol.

The readers' wing: references come in over HTTP and become verified pixels here."""

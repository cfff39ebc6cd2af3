"""Engines without a run."""

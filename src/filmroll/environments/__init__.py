"""Environments that come with filmroll."""

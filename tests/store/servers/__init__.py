"""Servers that speak S3, started by the tests on loopback: an emulator, a real one, and a proxy that fails."""

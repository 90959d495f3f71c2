"""Backends found through DNS."""

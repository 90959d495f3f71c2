"""Servers that are killed, peers that vanish, and other faults of a real network."""

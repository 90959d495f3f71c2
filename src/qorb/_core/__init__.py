"""Decisions, pure and synchronous: given their state, the time and a Random, they answer without waiting."""

"""The tests of qorb. A package, so that tests can share what tests/conftest.py and the simulation offer."""

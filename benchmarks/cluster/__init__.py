"""Pools at three PostgreSQL servers that die, hang and move: what each fault costs, beside other pools."""

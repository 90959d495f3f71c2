"""Random clients, faults and backends that come and go, all drawn from a seed; the laws are checked at every step."""

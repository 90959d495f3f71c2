"""The simulation: random clients, faults and backends on a pool in virtual time, with the laws checked at every step."""

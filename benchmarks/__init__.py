"""What qorb costs, measured beside its peers. `make bench`, or `python -m benchmarks --help`."""

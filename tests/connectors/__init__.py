"""The tests of the connectors, on real sockets."""

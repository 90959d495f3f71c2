"""Connectors that come with qorb. Each lives in a module of its own, which imports what that connector needs."""

from qorb.connectors.tcp import TcpConnector, TcpStream

__all__ = ["TcpConnector", "TcpStream"]

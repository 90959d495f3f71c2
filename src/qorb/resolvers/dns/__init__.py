"""Discovery by DNS."""

from qorb.resolvers.dns.policy import DnsPolicy
from qorb.resolvers.dns.resolver import DnsResolver

__all__ = ["DnsPolicy", "DnsResolver"]

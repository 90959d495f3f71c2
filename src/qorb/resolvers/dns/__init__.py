"""Discovery by DNS. What a journal is told of it, by `DnsResolver.follow()`, is public as well."""

from qorb.resolvers.dns._journal import Journal
from qorb.resolvers.dns._servers import Server
from qorb.resolvers.dns._values import Failed, NoRecords, Question, Records, Reply, Srv
from qorb.resolvers.dns.policy import DnsPolicy
from qorb.resolvers.dns.resolver import DnsResolver

__all__ = [
    "DnsPolicy",
    "DnsResolver",
    "Failed",
    "Journal",
    "NoRecords",
    "Question",
    "Records",
    "Reply",
    "Server",
    "Srv",
]

"""Resolvers: ways to know which backends there are."""

from qorb.resolvers.composite import FallbackResolver, MergeResolver
from qorb.resolvers.dns import DnsPolicy, DnsResolver
from qorb.resolvers.file import FileResolver
from qorb.resolvers.fixed import FixedResolver
from qorb.resolvers.manual import ManualResolver

__all__ = [
    "DnsPolicy",
    "DnsResolver",
    "FallbackResolver",
    "FileResolver",
    "FixedResolver",
    "ManualResolver",
    "MergeResolver",
]

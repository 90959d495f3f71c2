"""Resolvers: ways to know which backends there are."""

from qorb.resolvers.fixed import FixedResolver
from qorb.resolvers.manual import ManualResolver

__all__ = ["FixedResolver", "ManualResolver"]

"""Environments and tools of users: in processes of their own, each call within limits."""

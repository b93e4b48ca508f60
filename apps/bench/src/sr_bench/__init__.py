"""Measurements that can be trusted: quality of restored photographs."""

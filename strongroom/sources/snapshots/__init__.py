"""Snapshots of the storage below a resource: one moment to read from, and what changed since the last one."""

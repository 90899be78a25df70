"""The data plane: a deduplicating, encrypted repository. It knows no tenant, no HTTP and no SQL."""

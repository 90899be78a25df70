"""Where objects are kept: the interface, its two homes (a POSIX folder, memory), retries, and who opens which."""

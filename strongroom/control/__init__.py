"""The control plane: rows and rules. It knows no HTTP and moves no bytes."""

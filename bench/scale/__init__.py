"""The large form under load, as it grows, and beyond what one machine can show: docs/SCALE.md."""

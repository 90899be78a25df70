"""Speed of the API at a million restore points: `python -m bench.api`, see docs/benchmarks/api.md."""

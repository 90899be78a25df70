"""What Strongroom costs, measured. Each file says how it is run; docs/benchmarks has what came out."""

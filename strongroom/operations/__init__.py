"""The job side: where rows (control), bytes (engine) and protected things (sources) meet."""

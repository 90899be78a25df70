"""What every floor may know: errors, units, clock, ids and the types of streams. It imports nothing of ours."""

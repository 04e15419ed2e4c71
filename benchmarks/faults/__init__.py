"""What faults do to the commands that write: `python -m benchmarks.faults`."""

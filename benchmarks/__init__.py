"""Speed and memory against the peers: `python -m benchmarks`. One thread, medians, alternating order."""

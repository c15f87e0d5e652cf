"""Benchmarks: figures as ratios to a bare script. They print, they never fail on a time."""

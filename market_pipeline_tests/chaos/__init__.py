"""Chaos: faults at random moments from a printed seed, and one oracle: nothing lost, nothing twice."""

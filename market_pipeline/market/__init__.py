"""Pure market logic: bars, timeframes, sessions, aggregation, gaps, digests. No I/O; imports no other room."""

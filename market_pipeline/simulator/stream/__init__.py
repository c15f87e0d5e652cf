"""The vendor's WebSocket: the events of the REST side's truth, sent when their time passes the vendor's clock.

`hub` serves it, `connection` is one client's session, `topics` and `events` are the vendor's names and shapes, `feed`
turns ticks and bars into events in time order, `faults`, `interruptions` and `shaping` spoil it on demand, `wire` is
the socket below.
"""

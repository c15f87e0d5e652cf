"""A simulated market data vendor on loopback, with the shapes and faults of Polygon.io (now Massive).

`server.start()` runs it as a process, `server.start_in_thread()` inside this one; both return a running `Simulator`
with `base_url`, `api_key` and the methods of `client.ControlClient`. `truth` holds what it serves,
over REST (`rest`) and over its WebSocket (`stream`) on the same port.
"""

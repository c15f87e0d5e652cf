"""The message bus: batches of bars over NATS JetStream. Only this room and `local/` import nats."""

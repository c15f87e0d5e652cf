"""The hub: what watches over the services and tells them how to behave. Every service works without it, too."""

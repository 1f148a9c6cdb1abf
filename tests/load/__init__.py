"""The load generator, and what it compares: the SDK in-process with bridge and server."""

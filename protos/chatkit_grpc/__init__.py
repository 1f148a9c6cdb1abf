"""The contract between server, bridge and clients: messages, their JSON, the errors, and what both halves share."""

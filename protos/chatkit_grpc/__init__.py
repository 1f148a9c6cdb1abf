"""The contract between server, bridge and clients: the messages, their JSON and the errors."""

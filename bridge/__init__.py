"""The HTTP bridge: ChatKit's JSON and SSE on one side, gRPC on the other. It knows no user and no database."""

"""All tests; run them with `make test`."""

import os

# gRPC reads it when it is imported. The tests fork only to start programs, which needs no help of gRPC's.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

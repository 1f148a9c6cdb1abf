"""The gRPC server: threads and streaming answers on Postgres. The only place that knows asyncpg and the ChatKit SDK."""

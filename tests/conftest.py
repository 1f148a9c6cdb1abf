"""What all tests may ask for."""

from tests.database import (
    context,
    database,
    database_url,
    empty_database_url,
    migrated_template,
    postgres_url,
    store,
)

__all__ = ["context", "database", "database_url", "empty_database_url", "migrated_template", "postgres_url", "store"]

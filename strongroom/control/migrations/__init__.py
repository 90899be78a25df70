"""The schema's history: Alembic revisions, each a small Python file that applies the SQL file beside it."""

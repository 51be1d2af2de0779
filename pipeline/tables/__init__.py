"""Reading of CSV tables as users have them. Without exactly one possible reading, a table is refused in one line."""

from pipeline.tables.cells import as_number, is_missing
from pipeline.tables.reading import LINE, read_columns, read_table
from pipeline.tables.text import MAX_BYTES, table_exists

__all__ = ["LINE", "MAX_BYTES", "as_number", "is_missing", "read_columns", "read_table", "table_exists"]

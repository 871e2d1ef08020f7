"""Forward passes that are compiled, or captured and replayed."""

"""Forward passes that are compiled, and decode passes that are captured and replayed."""

"""For one model alone under ``generate()``, and a pair behind the same call."""

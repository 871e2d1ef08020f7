"""One sequence of a run: its record, what is saved of it, and the events that it gives out."""

"""States of a fixed size that some models keep beside keys and values."""

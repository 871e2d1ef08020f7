"""What runs inside of a vLLM engine."""

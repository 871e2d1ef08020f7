"""What two models and their tokenizers have in common: boundaries, text, translation, devices."""

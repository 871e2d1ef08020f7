"""Whether a way of computing a model gives the model's own logits: found by trying."""

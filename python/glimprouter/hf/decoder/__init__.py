"""All layers of a decoder in one native call, where a model is known to be such a decoder."""

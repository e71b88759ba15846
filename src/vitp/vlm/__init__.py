"""The vision-language model: tower, token drop, projector, packed language model, loss."""

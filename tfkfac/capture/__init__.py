"""What a step of data saw: calls of layers, losses, and their gradients."""

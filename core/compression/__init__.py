"""What the backward pass is given in place of whole activations."""

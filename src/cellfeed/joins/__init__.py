"""Several datasets as one: the same genes, exact shares in each minibatch, one state."""

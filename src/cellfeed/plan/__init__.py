"""Which cell leaves in which minibatch, and what an epoch costs: pure functions, without reads, threads or PyTorch."""

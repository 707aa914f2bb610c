"""Parts that all benchmarks share: stores, contenders in processes of their own, and records."""

"""What all benchmarks need: stores, contenders in processes of their own, and records."""

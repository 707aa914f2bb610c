"""What test modules and benchmarks share: small stores, an S3 server, a proxy that makes faults, and fakes."""

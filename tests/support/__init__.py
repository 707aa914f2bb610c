"""Helpers of tests and benchmarks: small stores, an S3 server, a proxy that causes faults, and fakes."""

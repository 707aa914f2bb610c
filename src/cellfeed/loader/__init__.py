"""What users iterate and what drives it: datasets, loaders, epochs, threads and worker processes."""

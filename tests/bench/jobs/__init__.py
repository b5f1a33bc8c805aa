"""Benchmarks of cluster jobs: bulk inference, embeddings of a chosen layer, fine-tuning, evaluation and quantization."""

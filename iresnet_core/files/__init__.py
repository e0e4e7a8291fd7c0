"""Models on disk: safetensors files with a description, written under a temporary name and renamed."""

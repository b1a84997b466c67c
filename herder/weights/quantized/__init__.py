"""Quantized Hugging Face checkpoints: the methods of config.json's quantization_config, one file each."""

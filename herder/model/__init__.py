"""The network, in PyTorch (the extra `herder[torch]`): one decoder for every generation, built from any file."""

"""Numbers in few bits: the storage formats of model files, and their reference pack and unpack."""

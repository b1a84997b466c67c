"""Image encoders: tiles of pixels -> states that the decoder reads, one file a generation."""

"""Images: from the bytes of a file to the tiles that a vision tower takes. Pillow and NumPy only, no torch."""

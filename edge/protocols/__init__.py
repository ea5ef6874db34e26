"""Wire formats: pure, bytes to frames and back."""

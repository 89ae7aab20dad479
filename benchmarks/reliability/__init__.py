"""What kill -9 at any moment leaves behind, and whether a second run mends it."""

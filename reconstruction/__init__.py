"""From sparse frames to completed pictures with uncertainty."""

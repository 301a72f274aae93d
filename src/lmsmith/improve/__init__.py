"""The loop: what people judged becomes the next version, with proof, or does not."""

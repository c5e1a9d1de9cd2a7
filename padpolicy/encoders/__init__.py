"""Frozen perception: images to latents, instructions to embeddings, depth pictures to small metric ones."""

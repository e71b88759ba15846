"""What leaves a run: its ViT or its whole model, in the formats other libraries open, proved and described."""

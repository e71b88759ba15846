"""The ViT after pretraining."""

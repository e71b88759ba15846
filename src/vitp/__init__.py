"""vitp: visual instruction pretraining. Instruction data in, domain vision backbone out."""

__version__ = "0.1.0"

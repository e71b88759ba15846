"""The zero-download demonstration: procedural overhead scenes and what is run on them."""

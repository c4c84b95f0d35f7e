"""ImageNet weights that arrive as installed packages, in the names of the library that uses them."""

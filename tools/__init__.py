"""Programs for developers of this repository. They are not installed, and no package of the product may import them."""

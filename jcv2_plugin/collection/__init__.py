"""Collections of multivectors: create, open, write, search and maintain them."""

"""Collections of multivectors: opening, writing, searching, and keeping them in order."""

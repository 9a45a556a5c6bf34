"""Keys, entries and the tiers that may hold an answer."""

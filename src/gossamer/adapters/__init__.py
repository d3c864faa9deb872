"""Everything that touches someone else's API."""

"""Jobs of several ranks: who holds what, who reads what, and how fragments, readings and requests travel."""

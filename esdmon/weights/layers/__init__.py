"""What each kind of module holds, as named matrices."""

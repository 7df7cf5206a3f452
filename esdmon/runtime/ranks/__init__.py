"""Jobs of several ranks: which rank holds and reads which matrices, and the messages and fragments they exchange."""

"""The alert rules that come with esdmon."""

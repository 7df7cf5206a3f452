"""Where readings run: on the spot, in threads, or in processes of their own, on the cores that are idle."""

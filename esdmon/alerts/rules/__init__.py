"""The built-in alert rules: `builtin.py` lists them; the other files hold their functions, by what they read."""

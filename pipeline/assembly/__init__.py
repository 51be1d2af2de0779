"""Code that makes objects from the params, and code that several stages share."""

"""The members of the family, one module each or one for each kind."""

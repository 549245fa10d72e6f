"""Files of adapters as the tools that train them write them: keys, and what they mean."""

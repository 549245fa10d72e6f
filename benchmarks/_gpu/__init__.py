"""What the benchmarks on one GPU are made of: models of full size, their calls, and a table with aims."""

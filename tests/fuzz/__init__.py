"""Readers of weights and configurations under atheris: damaged files give errors of the library and nothing else."""

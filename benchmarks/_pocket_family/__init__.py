"""What the benchmark ``pocket_quality`` measures, task by task: fresh scenes, what a pipeline makes of them, judges."""

"""What makes models and steps fast without being part of them: applied from outside, where it pays."""
